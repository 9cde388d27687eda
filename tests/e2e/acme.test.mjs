// Certificates by ACME from a real authority: Pebble, the one that Let's Encrypt tests clients with. It looks names up at its
// own DNS server (pebble-challtestsrv), rejects some nonces, and knows nobody again after a restart.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { test as any } from 'node:test';
import tls from 'node:tls';
import { fileURLToPath } from 'node:url';
import { binary, freePort, launch as start, pause, until } from './lib.mjs';

const test = (name, run) => any(name, { timeout: 180000 }, run);
const root = path.join(path.dirname(fileURLToPath(import.meta.url)), '../..');
const tool = (name) => [path.join(root, 'target/debian/usr/bin', name), `/usr/bin/${name}`].find((file) => fs.existsSync(file));
const get = (url, options = {}) => new Promise((done, fail) => {
  const request = (url.startsWith('https') ? https : http).request(url, { rejectUnauthorized: false, ...options }, (response) => {
    let body = '';
    response.on('data', (data) => { body += data; });
    response.on('end', () => done({ status: response.statusCode, headers: response.headers, body }));
  });
  request.on('error', fail);
  request.end(options.body);
});

// A handshake: what it is shown, or the error.
const shown = (port, servername, options = {}) => new Promise((done) => {
  const socket = tls.connect({ host: '127.0.0.1', port, servername, rejectUnauthorized: false, ...options }, () => {
    const certificate = socket.getPeerX509Certificate();
    done({ certificate, serial: certificate?.serialNumber, issuer: certificate?.issuer ?? '', alpn: socket.alpnProtocol });
    socket.destroy();
  });
  socket.on('error', (error) => done({ error, issuer: '' }));
});
const issued = async (port, name) => {
  const found = await shown(port, name);
  return found.issuer.includes('Pebble') && found;
};

// The authority, its DNS, and what an operator has to know of it.
class Authority {
  constructor(settings, ports) { Object.assign(this, { settings, ports }); }

  static async start(settings = {}) {
    const names = ['directory', 'management', 'dns', 'dnsManagement', 'tls', 'http'];
    const ports = Object.fromEntries(await Promise.all(names.map(async (name) => [name, await freePort()])));
    const authority = new Authority(settings, ports);
    authority.directory = fs.mkdtempSync(path.join(os.tmpdir(), 'portcullis-acme-'));
    const made = spawnSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '30', '-subj', '/CN=authority',
      '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1', '-addext', 'basicConstraints=critical,CA:FALSE', '-keyout', `${authority.directory}/ca.key`, '-out', `${authority.directory}/ca.pem`]);
    assert.equal(made.status, 0, String(made.stderr));
    authority.dns = start(tool('pebble-challtestsrv'), ['-dns01', `127.0.0.1:${ports.dns}`, '-management', `127.0.0.1:${ports.dnsManagement}`,
      '-http01', '', '-https01', '', '-tlsalpn01', '', '-defaultIPv6', '']);
    await authority.run();
    return authority;
  }

  async run() {
    const { ports, directory, settings } = this;
    fs.writeFileSync(path.join(directory, 'pebble.json'), JSON.stringify({
      pebble: {
        listenAddress: `127.0.0.1:${ports.directory}`, managementListenAddress: `127.0.0.1:${ports.management}`,
        certificate: `${directory}/ca.pem`, privateKey: `${directory}/ca.key`, tlsPort: ports.tls, httpPort: ports.http,
        ocspResponderURL: '', retryAfter: { authz: 1, order: 1 }, ...settings,
      },
    }));
    this.pebble = start(tool('pebble'), ['-config', `${directory}/pebble.json`, '-dnsserver', `127.0.0.1:${ports.dns}`, '-strict'],
      { PEBBLE_VA_NOSLEEP: '1', PEBBLE_AUTHZREUSE: '0' });
    await until('Pebble', () => get(`https://127.0.0.1:${ports.directory}/dir`).catch(() => false));
  }

  root() { return get(`https://127.0.0.1:${this.ports.management}/roots/0`).then(({ body }) => body); }

  name(what, body) { return get(`http://127.0.0.1:${this.ports.dnsManagement}/${what}`, { method: 'POST', body: JSON.stringify(body) }); }

  get log() { return this.pebble.log; }

  async stop() {
    await Promise.all([this.pebble.stop(), this.dns.stop()]);
    fs.rmSync(this.directory, { recursive: true });
  }
}

const routes = (hosts) => hosts.map((host) => ({ from: `https://${host}`, to: 'http://127.0.0.1:9', allow_public_unauthenticated_access: true }));

// A process of ours.
class Gate {
  constructor(authority, settings = {}) {
    this.directory = settings.directory ?? fs.mkdtempSync(path.join(os.tmpdir(), 'portcullis-gate-'));
    this.config = path.join(this.directory, 'config.json');
    this.settings = {
      address: `127.0.0.1:${authority.ports.tls}`, health_check_addr: '127.0.0.1:0', metrics_address: '127.0.0.1:0', state_dir: path.join(this.directory, 'state'),
      log_level: 'debug', authenticate_service_url: 'https://authenticate.example.com', idp_provider: 'oidc', idp_provider_url: 'https://127.0.0.1:9', idp_client_id: 'x',
      idp_client_secret: 'a-secret-of-ones-own', autocert: true, autocert_ca: `https://localhost:${authority.ports.directory}/dir`,
      autocert_trusted_ca_file: `${authority.directory}/ca.pem`, autocert_email: 'admin@example.com', routes: routes(['app.example.com']), ...settings.more,
    };
    this.write();
  }

  write(more = {}) {
    Object.assign(this.settings, more);
    fs.writeFileSync(this.config, JSON.stringify(this.settings));
  }

  async run() {
    this.process = start(binary, ['run', '-c', this.config]);
    const listening = await until('listening', () => this.said('listening') ?? (this.process.exitCode !== null && assert.fail(this.process.log)));
    this.port = Number(listening.address.split(':').at(-1));
    return this;
  }

  records() { return this.process.log.split('\n').filter((line) => line.startsWith('{')).map((line) => JSON.parse(line)); }

  said(message) { return this.records().find((one) => one.message.startsWith(message)); }

  how_often(message) { return this.records().filter((one) => one.message.startsWith(message)).length; }

  page(message, at) { return get(`http://${this.said(message).address}${at}`).then(({ body }) => body); }

  status() { return this.page('health', '/status').then(JSON.parse); }

  async stop() {
    if (this.process) await this.process.stop();
  }

  async remove() {
    await this.stop();
    fs.rmSync(this.directory, { recursive: true });
  }
}

const names = ['authenticate.example.com', 'app.example.com'];

test('each host gets a certificate in a handshake, keeps it through a restart, and nobody else can read it', async () => {
  const authority = await Authority.start();
  const gate = await new Gate(authority, { more: { routes: routes(['app.example.com', 'app.example.com', '*.wild.example.com', '127.0.0.1']) } }).run();
  const before = new Map();
  for (const name of names) {
    const found = await until(name, () => issued(gate.port, name));
    before.set(name, found.serial);
    const trusted = await shown(gate.port, name, { rejectUnauthorized: true, ca: await authority.root() });
    assert.equal(trusted.error, undefined, `${trusted.error}`);
    assert.equal(found.certificate.subjectAltName, `DNS:${name}`);
  }
  assert.equal(gate.how_often('a certificate was issued'), 2, gate.process.log);
  assert.match(gate.process.log, /no certificate is for \*\.wild\.example\.com \(none is ordered for a wildcard or an address\)/);
  assert.equal((authority.log.match(/Issued certificate serial/g) ?? []).length, 2, authority.log);
  // What is not asked for is not answered: neither in a handshake nor elsewhere, now or while something is under way.
  for (const name of ['other.example.com', 'app.example.com', '']) {
    assert.ok((await shown(gate.port, name, { ALPNProtocols: ['acme-tls/1'] })).error, name);
  }
  assert.match(await gate.page('metrics', '/metrics'), /^portcullis_acme_orders_total\{outcome="issued"\} 2$/m);
  assert.match(await gate.page('metrics', '/metrics'), /^portcullis_certificate_not_after_timestamp_seconds\{certificate="app\.example\.com"\} \d+$/m);
  assert.deepEqual((await gate.status()).certificates_not_obtained, []);
  const kept = fs.readdirSync(gate.settings.state_dir, { recursive: true }).map((name) => path.join(gate.settings.state_dir, name));
  const files = kept.filter((name) => name.includes('/acme/') && fs.statSync(name).isFile());
  assert.ok(files.some((name) => name.endsWith('/app.example.com')), `${files}`);
  for (const file of files) assert.equal(fs.statSync(file).mode & 0o777, 0o600, file);
  for (const file of kept.filter((name) => fs.statSync(name).isDirectory())) assert.equal(fs.statSync(file).mode & 0o777, 0o700, file);
  await gate.stop();
  // Without the authority.
  await authority.pebble.stop();
  await gate.run();
  for (const name of names) assert.equal((await shown(gate.port, name)).serial, before.get(name), 'it was there before anybody asked');
  await gate.remove();
  await authority.stop();
});

test('a host is shown to the authority over HTTP when a handshake does not reach it, and what is wrong is said meanwhile', async () => {
  const authority = await Authority.start();
  const gate = new Gate(authority, { more: { address: '127.0.0.1:0', http_redirect_addr: `127.0.0.1:${authority.ports.http}`, routes: routes(['app.example.com', 'gone.example.com']) } });
  await authority.name('set-servfail', { host: 'gone.example.com' });
  await gate.run();
  const failed = await until('a failure', () => gate.records().find((one) => one.message.startsWith('no certificate could be had') && one.host === 'app.example.com'));
  assert.match(failed.error, /(connection|unauthorized): .*; the authority asks at the host itself: its name has to lead to this server on port 443/);
  assert.match(failed.message, /until then browsers refuse the one that is made up/);
  await until('all', () => gate.how_often('no certificate could be had') >= 3);
  assert.equal((await gate.status()).certificates_not_obtained.length, 3);
  assert.match(await gate.page('metrics', '/metrics'), /^portcullis_acme_hosts_without_certificate 3$/m);
  // HUP: what failed is tried again at once, the other way.
  gate.process.kill('SIGHUP');
  for (const name of names) await until(name, () => issued(gate.port, name));
  await until('gone.example.com', () => gate.how_often('no certificate could be had') >= 4);
  const [trouble, ...others] = (await gate.status()).certificates_not_obtained;
  assert.deepEqual(others, []);
  assert.equal(trouble.host, 'gone.example.com');
  assert.match(trouble.problem, /(dns|connection): .*gone\.example\.com/);
  const next = Date.parse(trouble.tried_again_at) - Date.now();
  assert.ok(next > 3 * 60e3 && next < 5 * 60e3, `the pause grows: ${next}`);
  // What is no challenge of now is sent to https like anything else.
  for (const [host, token] of [['app.example.com', 'other'], ['other.example.com', 'x'], ['app.example.com', '../x']]) {
    const answer = await get(`http://127.0.0.1:${authority.ports.http}`, { path: `/.well-known/acme-challenge/${token}`, headers: { host } });
    assert.ok([301, 400, 404].includes(answer.status), `${host} ${token}: ${answer.status}`);
  }
  await gate.remove();
  await authority.stop();
});

test('a certificate is renewed in its time, no request fails, and the one before stays while that cannot be', async () => {
  const authority = await Authority.start({ certificateValidityPeriod: 30 });
  const gate = await new Gate(authority).run();
  const first = await until('the first', () => issued(gate.port, 'app.example.com'));
  let failures = 0;
  const counted = setInterval(() => get(`https://127.0.0.1:${gate.port}/`, { servername: 'app.example.com', headers: { host: 'app.example.com' } }).catch(() => { failures += 1; }), 20);
  const second = await until('the second', async () => { const now = await issued(gate.port, 'app.example.com'); return now.serial !== first.serial && now; });
  const age = Date.now() - Date.parse(first.certificate.validFrom);
  assert.ok(age > 9000 && age < 30000, `renewed after ${age} ms of 30 s`);
  assert.match(authority.log, /renewal/i, 'the authority was asked when');
  // The authority is gone when the next one is due.
  await authority.pebble.stop();
  const failed = await until('a failure', () => gate.said('no certificate could be had'));
  assert.match(failed.message, /until then the one before is shown/);
  assert.match(failed.error, /no connection to localhost:\d+/);
  const kept = await issued(gate.port, 'app.example.com');
  assert.ok(kept.serial !== first.serial && kept.issuer.includes('Pebble'));
  // It comes back as another one, which knows no account of ours.
  await authority.run();
  gate.process.kill('SIGHUP');
  await until('one of the new authority', async () => {
    const now = await shown(gate.port, 'app.example.com', { rejectUnauthorized: true, ca: await authority.root() });
    return !now.error;
  });
  clearInterval(counted);
  assert.equal(failures, 0);
  assert.ok(second.serial);
  await gate.remove();
  await authority.stop();
});

async function sharedStore() {
  const redisPort = await freePort();
  const redis = start('redis-server', ['--port', `${redisPort}`, '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no']);
  await until('Redis', () => redis.log.includes('Ready to accept'));
  const more = { address: '127.0.0.1:0', databroker_storage_type: 'redis', databroker_storage_connection_string: `redis://127.0.0.1:${redisPort}/0`, shared_secret: 'q1Zc0nJt1h8m7yM5m3qJb4m7pVw0yqv1C3eXkq0mZ3E=' };
  return { redis, redisPort, more };
}

// From now on a balancer leads to a process what comes, and what it held.
function leadTo(gate, balancer, held) {
  const lead = (socket) => {
    const onward = net.connect(gate.port, '127.0.0.1');
    socket.pipe(onward).pipe(socket);
    [socket, onward].forEach((end) => end.on('error', () => {}));
  };
  held.splice(0).forEach(lead);
  balancer.removeAllListeners('connection').on('connection', lead);
}

test('of processes that share a store one orders, any one answers, and all show the same certificate', async () => {
  const authority = await Authority.start();
  const { redis, redisPort, more } = await sharedStore();
  // What the authority asks reaches the process that did not order, as a balancer may have it.
  const held = [];
  const balancer = net.createServer((socket) => held.push(socket)).listen(authority.ports.tls, '127.0.0.1');
  const orders = await new Gate(authority, { more }).run();
  await until('a question', () => held.length >= 2);
  const answers = await new Gate(authority, { more }).run();
  leadTo(answers, balancer, held);
  for (const name of names) {
    const one = await until(name, () => issued(orders.port, name));
    const other = await until(name, () => issued(answers.port, name));
    assert.equal(one.serial, other.serial);
  }
  assert.equal(orders.how_often('a certificate was issued'), 2);
  assert.equal(answers.how_often('a certificate was issued'), 0);
  assert.ok(answers.how_often('a challenge of ACME was answered') >= 2, answers.process.log);
  assert.equal(fs.existsSync(path.join(orders.settings.state_dir, 'acme')), false);
  const keys = spawnSync('redis-cli', ['-p', `${redisPort}`, '--scan', '--pattern', 'portcullis:shelf:*'], { encoding: 'utf8' }).stdout.trim().split('\n');
  assert.ok(keys.length >= 5, `an account, and a certificate and a challenge each: ${keys}`);
  for (const key of keys) {
    const value = spawnSync('redis-cli', ['-p', `${redisPort}`, 'get', key], { encoding: 'latin1' }).stdout;
    assert.doesNotMatch(value, /PRIVATE KEY|BEGIN|key_pkcs8|token|example/, 'what others can read is sealed');
  }
  // One that starts later has them at once.
  await authority.pebble.stop();
  const third = await new Gate(authority, { more }).run();
  for (const name of names) assert.ok(await issued(third.port, name), name);
  // Another secret: what was sealed with the one before is sealed anew by whoever reads its configuration again.
  const another = 'mPcUJzvJqnuzEGVTs0a2wF4Ds0GEMbpoQYFBdhfWGAU=';
  orders.write({ shared_secret: [another, more.shared_secret] });
  await until('the reload', () => orders.said('another configuration is in force'));
  await pause(1000);
  const fourth = await new Gate(authority, { more: { ...more, shared_secret: another } }).run();
  for (const name of names) assert.equal((await shown(fourth.port, name)).serial, (await shown(orders.port, name)).serial, name);
  balancer.close();
  for (const gate of [orders, answers, third, fourth]) await gate.remove();
  await redis.stop();
  await authority.stop();
});

test('what fails at one process is not tried by the others, and what a stopping one began another one finishes', async () => {
  const authority = await Authority.start();
  const { redis, more } = await sharedStore();
  for (const host of names) await authority.name('set-servfail', { host });
  const [one, other] = [new Gate(authority, { more }), new Gate(authority, { more })];
  await Promise.all([one.run(), other.run()]);
  const failures = () => one.how_often('no certificate could be had') + other.how_often('no certificate could be had');
  await until('failures', () => failures() >= 2);
  await pause(8000);
  assert.equal(failures(), 2, 'one for each host');
  assert.equal((await one.status()).certificates_not_obtained.length + (await other.status()).certificates_not_obtained.length, 2);
  await other.stop();
  // Now the names lead here, and the first process is stopped while it is asked.
  for (const host of names) await authority.name('clear-servfail', { host });
  const held = [];
  const balancer = net.createServer((socket) => held.push(socket)).listen(authority.ports.tls, '127.0.0.1');
  one.process.kill('SIGHUP');
  await until('a question', () => held.length > 0);
  await one.stop();
  held.splice(0).forEach((socket) => socket.destroy());
  const next = await new Gate(authority, { more }).run();
  leadTo(next, balancer, held);
  for (const name of names) await until(name, () => issued(next.port, name));
  balancer.close();
  for (const gate of [one, other, next]) await gate.remove();
  await redis.stop();
  await authority.stop();
});

test('another authority replaces the certificates of the one before at once', async () => {
  const trial = await Authority.start();
  const gate = await new Gate(trial).run();
  for (const name of names) await until(name, () => issued(gate.port, name));
  const real = await Authority.start({ tlsPort: trial.ports.tls });
  gate.write({ autocert_ca: `https://localhost:${real.ports.directory}/dir`, autocert_trusted_ca_file: `${real.directory}/ca.pem` });
  const ca = await real.root();
  for (const name of names) {
    await until(name, async () => {
      const now = await shown(gate.port, name, { rejectUnauthorized: true, ca });
      assert.ok(now.error || now.issuer.includes('Pebble'));
      return !now.error;
    });
  }
  await gate.remove();
  await real.stop();
  await trial.stop();
});

test('an authority that knows its customers by other means is told who orders', async () => {
  const key = 'zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W';
  const authority = await Authority.start({ externalAccountBindingRequired: true, externalAccountMACKeys: { 'kid-1': key } });
  const gate = await new Gate(authority).run();
  const failed = await until('a failure', () => gate.said('no certificate could be had'));
  assert.match(failed.error, /externalAccountRequired: .*; set autocert_eab_key_id and autocert_eab_mac_key/);
  gate.write({ autocert_eab_key_id: 'kid-1', autocert_eab_mac_key: key });
  await until('a certificate', () => issued(gate.port, 'app.example.com'));
  assert.ok(!gate.process.log.includes(key));
  await gate.remove();
  await authority.stop();
});

test('what is configured comes first, a new host gets its own by reload, and one that is gone loses it', async () => {
  const authority = await Authority.start();
  const own = spawnSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '30', '-subj', '/CN=own',
    '-addext', 'subjectAltName=DNS:app.example.com', '-keyout', `${authority.directory}/own.key`, '-out', `${authority.directory}/own.crt`]);
  assert.equal(own.status, 0);
  const certificates = [{ cert: `${authority.directory}/own.crt`, key: `${authority.directory}/own.key` }];
  const gate = await new Gate(authority, { more: { certificates } }).run();
  await until('the authenticate host', () => issued(gate.port, 'authenticate.example.com'));
  assert.match((await shown(gate.port, 'app.example.com')).issuer, /CN=own/);
  gate.write({ routes: routes(['app.example.com', 'new.example.com']) });
  await until('the new host', () => issued(gate.port, 'new.example.com'));
  assert.equal(gate.how_often('a certificate was issued'), 2);
  gate.write({ autocert: false });
  await until('none is shown', async () => (await shown(gate.port, 'new.example.com')).issuer.includes('CN=own'));
  await gate.remove();
  await authority.stop();
});

test('the doctor finds an authority that cannot be reached, and names that lead nowhere', async () => {
  const authority = await Authority.start();
  const gate = new Gate(authority, { more: { routes: routes(['app.invalid']) } });
  const doctor = () => {
    const ran = spawnSync(binary, ['doctor', '-c', gate.config], { encoding: 'utf8', env: {} });
    return ran.stdout;
  };
  const well = doctor();
  assert.doesNotMatch(well, /ACME/);
  assert.match(well, /^warning: certificate for app\.invalid: the name cannot be looked up: .*; the authority asks at the host/m);
  await authority.pebble.stop();
  assert.match(doctor(), /^error: certificates by ACME: https:\/\/localhost:\d+\/dir cannot be reached \(connect\): /m);
  gate.write({ autocert_ca: `https://localhost:${authority.ports.directory}/other` });
  await authority.run();
  assert.match(doctor(), /^error: certificates by ACME: https:\/\/localhost:\d+\/other is no directory of ACME: it answered 404; correct autocert_ca/m);
  gate.write({ autocert_ca: `https://localhost:${authority.ports.directory}/dir`, autocert_trusted_ca_file: undefined });
  assert.match(doctor(), /^error: certificates by ACME: .* cannot be reached \(TLS\): .*autocert_trusted_ca_file/m);
  await gate.remove();
  await authority.stop();
});
