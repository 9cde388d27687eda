// Proxies that forward by themselves and ask Portcullis what may pass, started with the configurations in deploy/.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { application, freePort, run, secret } from './lib.mjs';

const here = path.dirname(fileURLToPath(import.meta.url));
const deploy = path.join(here, '../../deploy');
const program = (...places) => {
  const found = places.flatMap((place) => (place.includes('/') ? [place] : ['/usr/sbin', '/usr/bin', '/usr/local/bin'].map((at) => path.join(at, place))))
    .find((file) => fs.existsSync(file));
  if (!found) throw new Error(`${places.join(' or ')} is not there: tests/run e2e installs it`);
  return found;
};

// A text with each of the replacements made; each has to be there to be replaced.
function adapted(text, replacements) {
  for (const [what] of replacements) if (!text.includes(what)) throw new Error(`${what} is not in the configuration any more`);
  // All at once, and whole numbers: what was put in may begin like what is still to be replaced.
  const pattern = ([what]) => what.replace(/[.*+?^${}()|[\]\\]/g, '\\$&') + (/\d$/.test(what) ? '(?!\\d)' : '');
  const by = new Map(replacements);
  return text.replace(new RegExp(replacements.map(pattern).join('|'), 'g'), (found) => by.get(found));
}

const read = (file) => fs.readFileSync(path.join(deploy, file), 'utf8');

const hosts = ({ front }) => [['authenticate.example.com', 'authenticate.localhost'], ['app.example.com', `app.localhost${front}`]];

// Each starts a proxy and returns it; `at` says where everything is.
export const fronts = {
  async nginx(at, file = 'nginx/portcullis.conf') {
    const own = adapted(read(file), [
      ['127.0.0.1:8080', `127.0.0.1:${at.portcullis}`], ['127.0.0.1:3000', `127.0.0.1:${at.app}`], ['listen 443 ssl', `listen 127.0.0.1:${at.port} ssl`],
      ['/etc/nginx/site.pem', `${at.state}/site.pem`], ['/etc/nginx/site.key', `${at.state}/site.key`], ...hosts({ front: '' }),
    ]);
    const whole = `daemon off; master_process off; error_log stderr notice; pid ${at.state}/nginx.pid; events {}
      http { access_log off; client_body_temp_path ${at.state}/1; proxy_temp_path ${at.state}/2; fastcgi_temp_path ${at.state}/3;
        uwsgi_temp_path ${at.state}/4; scgi_temp_path ${at.state}/5;\n${own}\n}`;
    fs.writeFileSync(`${at.state}/nginx.conf`, whole);
    return run(['-c', `${at.state}/nginx.conf`, '-p', at.state], {}, /start|using the/, program('nginx'));
  },
  'nginx as with oauth2-proxy': (at) => fronts.nginx(at, 'nginx/oauth2-proxy.conf'),
  async HAProxy(at) {
    const lua = adapted(read('haproxy/portcullis.lua'), [['127.0.0.1:8080', `127.0.0.1:${at.portcullis}`]]);
    fs.writeFileSync(`${at.state}/portcullis.lua`, lua);
    fs.writeFileSync(`${at.state}/haproxy.cfg`, adapted(read('haproxy/haproxy.cfg'), [
      ['127.0.0.1:8080', `127.0.0.1:${at.portcullis}`], ['127.0.0.1:3000', `127.0.0.1:${at.app}`], ['127.0.0.1:443', `127.0.0.1:${at.port}`],
      ['/etc/haproxy/portcullis.lua', `${at.state}/portcullis.lua`], ['/etc/haproxy/site.pem', `${at.state}/both.pem`],
      ['authenticate.example.com', 'authenticate.localhost'],
    ]));
    const haproxy = await run(['-V', '-db', '-f', `${at.state}/haproxy.cfg`], {}, /New worker|started|Available polling|Using|NOTICE/, program('haproxy'));
    await reachable(at.port);
    return haproxy;
  },
  async Caddy(at) {
    fs.writeFileSync(`${at.state}/Caddyfile`, adapted(read('caddy/Caddyfile'), [
      ['127.0.0.1:8080', `127.0.0.1:${at.portcullis}`], ['127.0.0.1:3000', `127.0.0.1:${at.app}`],
      ['admin off', `admin off\n\tauto_https disable_redirects\n\tdefault_bind 127.0.0.1`],
      ['/etc/caddy/site.pem', `${at.state}/site.pem`], ['/etc/caddy/site.key', `${at.state}/site.key`],
      ['\nauthenticate.example.com', `\nhttps://authenticate.localhost:${at.port}`], ['\napp.example.com', `\nhttps://app.localhost:${at.port}`],
    ]));
    const caddy = await run(['run', '--adapter', 'caddyfile', '--config', `${at.state}/Caddyfile`], { XDG_DATA_HOME: at.state, XDG_CONFIG_HOME: at.state },
      /serving initial configuration/, program('caddy'));
    await reachable(at.port);
    return caddy;
  },
  async 'Envoy over gRPC'(at) { return envoy(at, 'envoy/grpc.yaml', [['port_value: 8081', `port_value: ${at.grpc}`]]); },
  async 'Envoy over HTTP'(at) { return envoy(at, 'envoy/http.yaml', [['http://127.0.0.1:8080', `http://127.0.0.1:${at.portcullis}`]]); },
  async 'Traefik\'s contract'(at) { return traefik(at); },
};

async function envoy(at, file, more) {
  fs.writeFileSync(`${at.state}/envoy.yaml`, adapted(read(file), [
    ['port_value: 8080', `port_value: ${at.portcullis}`], ['port_value: 3000', `port_value: ${at.app}`], ['port_value: 443', `port_value: ${at.port}`],
    ['/etc/envoy/site.pem', `${at.state}/site.pem`], ['/etc/envoy/site.key', `${at.state}/site.key`],
    ['authenticate.example.com', 'authenticate.localhost'], ...more,
  ]));
  const binary = execFileSync('find', [process.env.ENVOY_HOME || path.join(here, '../../target/envoy'), '-path', '*/_bin/envoy', '-type', 'f']).toString().trim();
  const running = await run(['-c', `${at.state}/envoy.yaml`, '--use-dynamic-base-id', '--concurrency', '1', '-l', 'info'], {},
    /starting main dispatch loop/, program(binary));
  await reachable(at.port);
  return running;
}

// Traefik itself cannot be had as a package here, so this does what its ForwardAuth does (pkg/middlewares/auth/forward.go),
// with the settings of deploy/traefik/dynamic.yaml: a GET with X-Forwarded-*, redirects not followed; of an answer from 200 to
// 299 the named headers are put in place of the client's, one that is absent is removed; any other answer goes to the client.
async function traefik(at) {
  const settings = read('traefik/dynamic.yaml');
  const address = /address: http:\/\/127\.0\.0\.1:8080(\S+)/.exec(settings)[1];
  const named = [...settings.matchAll(/^ {10}- (\S+)$/gm)].map(([, name]) => name.toLowerCase()).filter((name) => !name.includes(':'));
  const hop = ['connection', 'keep-alive', 'proxy-authenticate', 'proxy-authorization', 'te', 'trailers', 'transfer-encoding', 'upgrade'];
  const pass = (request, response, port, headers) => {
    const on = http.request({ host: '127.0.0.1', port, method: request.method, path: request.url, headers, agent: false }, (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      answer.pipe(response);
    });
    on.on('error', () => response.writeHead(502).end());
    request.pipe(on);
  };
  const server = https.createServer({ cert: fs.readFileSync(`${at.state}/site.pem`), key: fs.readFileSync(`${at.state}/site.key`) }, (request, response) => {
    const host = request.headers.host.split(':')[0];
    const forwarded = Object.fromEntries(Object.entries(request.headers).filter(([name]) => !name.startsWith('x-forwarded-') && !hop.includes(name)));
    forwarded['x-forwarded-for'] = '127.0.0.1';
    const own = request.url.startsWith('/.pomerium/');
    if (request.url.startsWith('/.pomerium/auth/')) return response.writeHead(404).end();
    if (host === 'authenticate.localhost' || own) return pass(request, response, at.portcullis, forwarded);
    const asked = { ...forwarded, host: `127.0.0.1:${at.portcullis}`, 'x-forwarded-method': request.method, 'x-forwarded-proto': 'https',
      'x-forwarded-host': request.headers.host, 'x-forwarded-uri': request.url };
    delete asked['content-length'];
    http.get({ host: '127.0.0.1', port: at.portcullis, path: address, headers: asked, agent: false }, (answer) => {
      if (answer.statusCode < 200 || answer.statusCode >= 300) {
        const to = answer.headers.location;
        const absolute = to && new URL(to, `http://127.0.0.1:${at.portcullis}${address}`).href;
        response.writeHead(answer.statusCode, { ...answer.headers, ...(to ? { location: absolute } : {}) });
        return answer.pipe(response);
      }
      answer.resume();
      const headers = { ...forwarded };
      for (const name of named) {
        delete headers[name];
        if (answer.headers[name] !== undefined) headers[name] = answer.headers[name];
      }
      pass(request, response, at.app, headers);
    }).on('error', () => response.writeHead(500).end());
  });
  await new Promise((done) => server.listen(at.port, '127.0.0.1', done));
  return { stop: () => new Promise((done) => { server.closeAllConnections(); server.close(done); }) };
}

// Until something listens there.
async function reachable(port) {
  for (let left = 100; ; left -= 1) {
    const open = await new Promise((done) => {
      const socket = net.connect(port, '127.0.0.1', () => { socket.destroy(); done(true); }).on('error', () => done(false));
    });
    if (open) return;
    if (left === 0) throw new Error(`nothing listens on ${port}`);
    await new Promise((done) => { setTimeout(done, 100); });
  }
}

// The whole: provider, application, Portcullis that decides, and the proxy in front. The ports were free a moment ago; when
// somebody has taken one since, others are tried.
export async function fronted(name, attempts = 3) {
  try {
    return await startAll(name);
  } catch (error) {
    if (attempts > 1 && /in use/i.test(error.message)) return fronted(name, attempts - 1);
    throw error;
  }
}

async function startAll(name) {
  const app = await application();
  const [port, portcullis, grpc, issuerPort, domainPort] = await Promise.all([1, 2, 3, 4, 5].map(freePort));
  const state = fs.mkdtempSync(path.join(os.tmpdir(), 'portcullis-front-'));
  const auth = `https://authenticate.localhost:${port}`;
  const issuer = `http://idp.localhost:${issuerPort}/eu-west-2_KcLwCelr7`;
  const started = [app];
  const stop = async () => {
    await Promise.all(started.reverse().map((one) => one.stop()));
    fs.rmSync(state, { recursive: true, force: true });
  };
  try {
    execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2', '-subj', '/CN=localhost',
      '-addext', 'subjectAltName=DNS:authenticate.localhost,DNS:app.localhost', '-keyout', `${state}/site.key`, '-out', `${state}/site.pem`], { stdio: 'ignore' });
    fs.writeFileSync(`${state}/both.pem`, fs.readFileSync(`${state}/site.pem`, 'utf8') + fs.readFileSync(`${state}/site.key`, 'utf8'));
    started.push(await run(['cognito-like-op.mjs'], {
      ISSUER_PORT: issuerPort, DOMAIN_PORT: domainPort, ISSUER: issuer, DOMAIN: `http://login.localhost:${domainPort}`, PICK: '1',
      CALLBACKS: `${auth}/oauth2/callback`, LOGOUTS: `${auth}/.pomerium/signed_out`,
    }, /domain http/, process.execPath));
    const config = adapted(read('portcullis-decides.yaml'), [
      ['127.0.0.1:8080', `127.0.0.1:${portcullis}`], ['127.0.0.1:8081', `127.0.0.1:${grpc}`],
      ['https://cognito-idp.{REGION_ID}.amazonaws.com/{POOL_ID}', issuer], ['${CLIENT_ID}', 'confidential'], ['${CLIENT_SECRET}', secret],
      ['https://authenticate.example.com', auth], ['https://app.example.com', `https://app.localhost:${port}`],
    ]);
    fs.writeFileSync(`${state}/portcullis.yaml`, `health_check_addr: 127.0.0.1:0\nworkers: 1\nstate_dir: ${state}\n${config}`);
    const server = await run(['run', '-c', `${state}/portcullis.yaml`], {}, /"message":"listening"/);
    started.push(server);
    const front = await fronts[name]({ port, portcullis, grpc, app: app.port, state });
    started.push(front);
    return { port, auth, server, front, state, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}
