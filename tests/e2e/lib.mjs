// Starts what the tests drive: the independent provider, an application, Portcullis, Chromium. Everything
// listens on loopback, on ports that the system picks, and is stopped by its own process id.
import { spawn } from 'node:child_process';
import crypto from 'node:crypto';
import fs from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';

const here = path.dirname(fileURLToPath(import.meta.url));
export const out = path.join(here, 'out');
fs.mkdirSync(out, { recursive: true });
export const binary = process.env.PORTCULLIS || path.join(here, '../../target/debug/portcullis');
export const secret = 'standin0only0for0loopback0tests0a1b2c3d4e5f6g7h8i9j0';

const running = new Set();
process.on('exit', () => running.forEach((child) => child.kill('SIGKILL')));

// Where nobody listens; another one each time, for the system may say the same one again.
const given = new Set();
export async function freePort() {
  for (;;) {
    const port = await new Promise((done) => {
      const server = net.createServer().listen(0, '127.0.0.1', () => {
        const { port } = server.address();
        server.close(() => done(port));
      });
    });
    if (given.has(port)) continue;
    given.add(port);
    return port;
  }
}

function start(command, args, env, ready) {
  const child = spawn(command, args, { env: { ...env, PATH: process.env.PATH, HOME: os.tmpdir() }, cwd: here });
  running.add(child);
  child.log = '';
  const up = new Promise((done, fail) => {
    const seen = (data) => { child.log += data; const found = ready.exec(child.log); if (found) done(found); };
    child.stdout.on('data', seen);
    child.stderr.on('data', seen);
    child.on('exit', (code) => fail(new Error(`${command} ${args[0]} ended with ${code}:\n${child.log}`)));
    setTimeout(() => fail(new Error(`${command} ${args[0]} was not up after 60 s:\n${child.log}`)), 60000).unref();
  });
  child.stop = () => new Promise((done) => {
    running.delete(child);
    if (child.exitCode !== null) return done(child.exitCode);
    child.removeAllListeners('exit');
    child.on('exit', done);
    child.kill('SIGTERM');
    setTimeout(() => child.kill('SIGKILL'), 5000).unref();
  });
  return up.then((found) => Object.assign(child, { found }));
}

export const pause = (ms) => new Promise((done) => setTimeout(done, ms));

// A process whose output is in `log`, with no environment but what is given; ended with the tests.
export function launch(command, words, env = {}) {
  const child = spawn(command, words, { env: { PATH: process.env.PATH, ...env } });
  running.add(child);
  child.log = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (data) => { child.log += data; });
  child.ended = new Promise((done) => child.on('close', (code) => { running.delete(child); done(code); }));
  child.stop = (signal = 'SIGTERM') => { child.kill(signal); return child.ended; };
  return child;
}

// What a condition says, once it says something.
export async function until(what, condition, ms = 40000) {
  for (const end = Date.now() + ms; ;) {
    const found = await condition();
    if (found) return found;
    if (Date.now() > end) throw new Error(`${what}: not within ${ms} ms`);
    await pause(100);
  }
}

// An application that shows what it was sent, and echoes WebSocket messages.
export async function application() {
  const server = http.createServer((request, response) => {
    let body = '';
    request.on('data', (data) => { body += data; });
    request.on('end', () => {
      response.setHeader('content-type', 'text/html');
      response.end(`<title>app</title><h1 id="path">${request.method} ${request.url}</h1><pre id="headers">${
        JSON.stringify(request.headers).replaceAll('<', '&lt;')}</pre><pre id="body">${body.replaceAll('<', '&lt;')}</pre>
        <form method="post" action="/save"><input name="note" value="kept"><button>save</button></form>`);
    });
  });
  server.on('upgrade', (request, socket) => {
    const accept = crypto.createHash('sha1').update(`${request.headers['sec-websocket-key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64');
    socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`);
    socket.on('error', () => {});
    socket.on('data', (frame) => { // one short masked text frame at a time
      if ((frame[0] & 0x0f) !== 1) return socket.end();
      const length = frame[1] & 0x7f;
      const mask = frame.subarray(2, 6);
      const text = Buffer.from(frame.subarray(6, 6 + length)).map((byte, at) => byte ^ mask[at % 4]);
      const reply = Buffer.concat([Buffer.from(`${request.headers['x-pomerium-claim-email']}: `), text]);
      socket.write(Buffer.concat([Buffer.from([0x81, reply.length]), reply]));
    });
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  return { port: server.address().port, stop: () => new Promise((done) => { server.closeAllConnections(); server.close(done); }) };
}

// The provider alone: how it is reached, and how it is stopped.
export async function provider(switches = {}) {
  const [issuerPort, domainPort] = [await freePort(), await freePort()];
  const issuer = `http://idp.localhost:${issuerPort}/eu-west-2_KcLwCelr7`;
  const op = await start(process.execPath, ['cognito-like-op.mjs'], {
    ISSUER_PORT: issuerPort, DOMAIN_PORT: domainPort, ISSUER: issuer, DOMAIN: `http://login.localhost:${domainPort}`, ...switches,
  }, /domain http/);
  return { issuer, issuerPort, domainPort, stop: () => op.stop() };
}

// The whole: `provider` are switches of the provider, `settings` further keys of Portcullis.
export async function stack(options = {}) {
  const app = await application();
  try {
    return await behind(app, options);
  } catch (error) {
    running.forEach((child) => child.kill('SIGKILL'));
    await app.stop();
    throw error;
  }
}

async function behind(app, { provider = {}, settings = {}, routes }) {
  const [port, issuerPort, domainPort] = [await freePort(), await freePort(), await freePort()];
  const auth = `https://authenticate.localhost:${port}`;
  const issuer = `http://idp.localhost:${issuerPort}/eu-west-2_KcLwCelr7`;
  const op = await start(process.execPath, ['cognito-like-op.mjs'], {
    ISSUER_PORT: issuerPort, DOMAIN_PORT: domainPort, ISSUER: issuer, DOMAIN: `http://login.localhost:${domainPort}`, PICK: '1',
    CALLBACKS: ['', '/staff', '/partners'].map((id) => `${auth}/oauth2/callback${id}`).join(','), LOGOUTS: `${auth}/.pomerium/signed_out`, ...provider,
  }, /domain http/);
  const state = fs.mkdtempSync(path.join(os.tmpdir(), 'portcullis-e2e-'));
  const to = `http://127.0.0.1:${app.port}`;
  const all = routes?.(port, to) ?? [
    { name: 'Application', from: `https://app.localhost:${port}`, to, pass_identity_headers: true, allow_any_authenticated_user: true },
    { name: 'Administration', from: `https://admin.localhost:${port}`, to, pass_identity_headers: true, show_error_details: true,
      policy: [{ allow: { or: [{ groups: 'admins' }] } }] },
    { name: 'Public', from: `https://open.localhost:${port}`, to, allow_public_unauthenticated_access: true },
  ];
  const config = path.join(state, 'config.json');
  const write = () => fs.writeFileSync(config, JSON.stringify({
    address: `127.0.0.1:${port}`, health_check_addr: '127.0.0.1:0', state_dir: state, workers: 1, error_contact: 'Ask ops@example.com',
    authenticate_service_url: auth, idp_provider: 'cognito', idp_provider_url: issuer, idp_client_id: 'confidential',
    idp_client_secret: secret, jwt_claims_headers: ['email', 'name', 'cognito:groups', 'custom:team'],
    ...(typeof settings === 'function' ? settings({ issuer, state }) : settings), routes: all,
  }));
  write();
  const run = () => start(binary, ['run', '-c', config], {}, /"message":"listening"/);
  const whole = { port, auth, issuer, op, app, state, server: await run() };
  whole.restart = async (signal = 'SIGKILL') => {
    running.delete(whole.server);
    whole.server.removeAllListeners('exit');
    await new Promise((done) => { whole.server.on('exit', done); whole.server.kill(signal); });
    whole.server = await run();
  };
  whole.stop = async () => {
    await Promise.all([whole.server.stop(), op.stop(), app.stop()]);
    fs.rmSync(state, { recursive: true, force: true });
  };
  return whole;
}

export const run = (args, env, ready, command = binary) => start(command, args, env, ready);

export async function browser() {
  const executablePath = ['/usr/bin/chromium', '/usr/bin/chromium-browser'].find((file) => fs.existsSync(file));
  return chromium.launch({
    executablePath, headless: true,
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
      '--disable-component-update', '--disable-sync'],
  });
}

// A browser of one person: its own cookies.
export async function person(chrome, options = {}) {
  const context = await chrome.newContext({ ignoreHTTPSErrors: true, ...options });
  context.setDefaultTimeout(15000);
  return context;
}

export async function signIn(page, url, user) {
  await page.goto(url);
  await choose(page, user);
}

// On the provider's page.
export async function choose(page, user) {
  await page.click(`#${user}`);
  await page.waitForLoadState();
}

// What the server answers to cookies that somebody kept: the status of who-am-I.
export const replay = (port, host, cookies) => new Promise((done, fail) => {
  https.get({
    host: '127.0.0.1', port, servername: host, path: '/.pomerium/user', rejectUnauthorized: false, agent: false,
    headers: { host: `${host}:${port}`, accept: 'application/json', cookie: cookies.map(({ name, value }) => `${name}=${value}`).join('; ') },
  }, (answer) => { answer.resume(); done(answer.statusCode); }).on('error', fail);
});
