// `portcullis doctor` against the independent provider: each fault that the guides for Cognito speak of is planted, and found
// with the place to mend it. Nobody signs in.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import http from 'node:http';
import os from 'node:os';
import path from 'node:path';
import { test as any } from 'node:test';
import { application, binary, freePort, provider, run, secret } from './lib.mjs';

const test = (name, run) => any(name, { timeout: 120000 }, run);
const callback = 'https://authenticate.localhost:8443/oauth2/callback';
const signedOut = 'https://authenticate.localhost:8443/.pomerium/signed_out';
const another = 'another0only0for0loopback0tests0a1b2c3d4e5f6g7h8i9';
const registered = { CALLBACKS: callback, LOGOUTS: signedOut };

// Runs the doctor on a configuration: the exit code, and what it printed.
async function doctor(settings, ...words) {
  const state = fs.mkdtempSync(path.join(os.tmpdir(), 'portcullis-doctor-'));
  const config = path.join(state, 'config.json');
  fs.writeFileSync(config, JSON.stringify({
    state_dir: state, authenticate_service_url: 'https://authenticate.localhost:8443', idp_provider: 'cognito',
    idp_client_id: 'confidential', idp_client_secret: secret, routes: [], ...settings,
  }));
  const child = spawn(binary, ['doctor', '-c', config, ...words], { env: {} });
  const said = { out: '', err: '' };
  child.stdout.on('data', (data) => { said.out += data; });
  child.stderr.on('data', (data) => { said.err += data; });
  said.code = await new Promise((done) => child.on('close', done));
  fs.rmSync(state, { recursive: true });
  const own = settings.idp_client_secret || secret;
  assert.ok(!`${said.out}${said.err}`.includes(own), `a secret is printed: ${said.out}${said.err}`);
  return said;
}

const findings = ({ out }) => out.split('\n').filter((line) => /^(error|warning): /.test(line));

// The table of the closing note: what was planted, and the sentence.
const table = [];
process.on('exit', () => table.forEach(([fault, sentence]) => console.log(`| ${fault} | ${sentence} |`)));

const faults = {
  'the pool has no domain': [{ NO_DOMAIN: '1' }, {},
    /^error: identity provider: the user pool eu-west-2_KcLwCelr7 has no domain, so nobody can sign in: create one at Amazon Cognito > User pools > eu-west-2_KcLwCelr7 > Branding > Domain/],
  'the callback is not registered': [{ ...registered, CALLBACKS: 'https://elsewhere.example.com/x' }, {},
    new RegExp(`^error: identity provider: the callback URL is not registered: add ${callback} at Amazon Cognito .* > Allowed callback URLs`)],
  'the callback is registered with a slash': [{ ...registered, CALLBACKS: `${callback}/` }, {}, /registered there as .*callback\/, which differs by a slash at the end: register https:\/\/.*callback at/],
  'the callback is registered with http': [{ ...registered, CALLBACKS: callback.replace('https', 'http') }, {}, /differs by http and https/],
  'the callback is registered without the port': [{ ...registered, CALLBACKS: callback.replace(':8443', '') }, {}, /differs by the port/],
  'the callback is registered with another path': [{ ...registered, CALLBACKS: callback.replace('/oauth2/callback', '/callback') }, {}, /which has another path/],
  'a scope is not enabled': [registered, { idp_client_id: 'noprofile', idp_client_secret: another },
    /^error: identity provider: it refuses the scope profile for this client: enable it at .* > OpenID Connect scopes, or take it out of idp_scopes$/],
  'the scope openid is not enabled': [registered, { idp_client_id: 'noopenid', idp_client_secret: another },
    /^error: identity provider: it refuses the scope openid for this client: enable it at/],
  'the app client has no style': [{ ...registered, NO_STYLE: '1' }, {},
    /^error: identity provider: its login page answers 403 \("Login pages unavailable"\), so nobody can sign in: .* Branding > Managed login > Styles/],
  'the domain of the pool has no address': [{ ...registered, DOMAIN: 'https://login.invalid' }, {},
    /^error: identity provider: where people sign in cannot be reached \(name\): .*; login\.invalid is the pool's domain: give a domain of your own its DNS record, or wait/],
  'an old callback is not registered': [registered, { authenticate_callback_aliases: ['https://old.localhost:8443/oauth2/callback'] },
    /^warning: identity provider: https:\/\/old\.localhost:8443\/oauth2\/callback, one of authenticate_callback_aliases, is not registered: if no sign-ins come back there/],
  'only an old callback is registered': [{ ...registered, CALLBACKS: callback.replace('/oauth2/callback', '/callback') },
    { authenticate_callback_aliases: [callback.replace('/oauth2/callback', '/callback')] },
    new RegExp(`^error: identity provider: the callback URL is not registered: add ${callback} at`)],
  'no identity provider is enabled': [registered, { idp_client_id: 'noidp', idp_client_secret: another },
    /^error: identity provider: the app client may not sign people in: .*Identity providers/],
  'the secret is wrong': [registered, { idp_client_secret: 'y'.repeat(48) }, /^error: identity provider: it does not accept idp_client_id confidential with idp_client_secret: the secret is wrong or was replaced/],
  'the secret is missing': [registered, { idp_client_secret: undefined }, /^error: identity provider: it does not accept idp_client_id confidential without a secret: set idp_client_secret/],
  'the client was made anew': [registered, { idp_client_id: 'gone' }, /^error: identity provider: no client has the id gone: .* made anew/],
  'the sign-out URL is not registered': [{ ...registered, LOGOUTS: 'https://elsewhere.example.com/' }, {}, new RegExp(`^warning: identity provider: the sign-out URL is not registered.* add ${signedOut} at `)],
};

for (const [fault, [switches, settings, expected]] of Object.entries(faults)) {
  test(`found: ${fault}`, async () => {
    const op = await provider(switches);
    try {
      const said = await doctor({ idp_provider_url: op.issuer, ...settings });
      const found = findings(said);
      assert.equal(found.length, 1, `${said.out}${said.err}`);
      assert.match(found[0], expected);
      assert.equal(said.code, 1);
      // The one exact URL, alone on its line.
      assert.ok(said.out.split('\n').includes(callback), said.out);
      assert.ok(said.out.split('\n').includes(signedOut), said.out);
      table.push([fault, found[0]]);
    } finally {
      await op.stop();
    }
  });
}

test('nothing is found where nothing is wrong, and every endpoint is printed', async () => {
  const [op, app] = [await provider(registered), await application()];
  try {
    const routes = [{ from: 'https://app.localhost:8443', to: `http://127.0.0.1:${app.port}`, allow_any_authenticated_user: true }];
    for (const client of [{}, { idp_client_id: 'confidentialpost', idp_client_auth: 'post' }, { idp_client_id: 'publicpkce', idp_client_secret: undefined },
      { idp_provider_url: `${op.issuer}/` }, { idp_provider_url: `${op.issuer}/.well-known/openid-configuration` }]) {
      const said = await doctor({ idp_provider_url: op.issuer, routes, ...client });
      assert.equal(said.code, 0, `${said.out}${said.err}`);
      assert.match(said.out, /^Nothing is wrong: the configuration, 1 provider, the session store, 1 certificate, the upstreams of 1 route\.$/m);
    }
    const { out } = await doctor({ idp_provider_url: op.issuer, routes }, '--discovery');
    assert.match(out, new RegExp(`token_endpoint: http://login.localhost:${op.domainPort}/oauth2/token`));
    const json = JSON.parse((await doctor({ idp_provider_url: op.issuer, routes }, '--json')).out);
    assert.deepEqual([json.ok, json.findings, json.callback_urls, json.sign_out_url], [true, [], [callback], signedOut]);
    assert.equal(json.providers[0].endpoints.issuer, op.issuer);
  } finally {
    await op.stop();
    await app.stop();
  }
});

test('a document that a cache has kept for a while says nothing of a clock', async () => {
  const answer = (request, response) => {
    if (!request.url.includes('openid-configuration')) return false;
    response.setHeader('date', new Date(Date.now() - 1358000).toUTCString());
    response.setHeader('age', '1358');
    return false;
  };
  const said = await behind(answer, (issuer) => doctor({ idp_provider_url: issuer }));
  assert.deepEqual(findings(said), []);
  assert.equal(said.code, 0, said.out);
});

// What stands between: it answers some paths, and not others.
async function between(op, answer) {
  const server = http.createServer((request, response) => {
    if (answer(request, response)) return;
    http.get({ host: '127.0.0.1', port: op.issuerPort, path: request.url, headers: { host: new URL(op.issuer).host } }, (from) => {
      const { date = from.headers.date, age } = response.getHeaders();
      response.writeHead(from.statusCode, { ...from.headers, date, ...(age && { age }) });
      from.pipe(response);
    });
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  return { port: server.address().port, stop: () => new Promise((done) => { server.closeAllConnections(); server.close(done); }) };
}

const ways = {
  'the keys are not let through': [(request, response) => request.url.endsWith('jwks.json') && response.writeHead(403).end(),
    /^error: identity provider: its discovery document can be read, but its keys cannot: .*jwks\.json answered 403/],
  'the keys are no keys': [(request, response) => request.url.endsWith('jwks.json') && response.end('<html>'), /its keys cannot: .* is no usable key set/],
  'there is no such pool': [(request, response) => request.url.includes('openid-configuration') && response.writeHead(404).end(),
    /openid-configuration answered 404\)? .*idp_provider_url/],
  'something else answers': [(request, response) => request.url.includes('openid-configuration') && response.end('<html>'), /is no discovery document/],
  'the provider does not work': [(request, response) => request.url.includes('openid-configuration') && response.writeHead(503).end(), /answered 503: the provider does not work/],
  'the clocks differ': [(request, response) => { response.sendDate = false; response.setHeader('date', new Date(Date.now() - 300000).toUTCString()); },
    /^error: identity provider: its clock is (29[0-9]|30[0-9]) s behind this machine's.* NTP/],
};

// A provider with something between, which it calls itself by; what comes of asking there.
async function behind(answer, ask) {
  const port = await freePort();
  const issuer = `http://idp.localhost:${port}/eu-west-2_KcLwCelr7`;
  const op = await provider({ ...registered, ISSUER: issuer });
  const front = await between(op, answer);
  const forward = http.createServer((request, response) => {
    http.get({ host: '127.0.0.1', port: front.port, path: request.url }, (from) => {
      response.sendDate = false;
      response.writeHead(from.statusCode, from.headers);
      from.pipe(response);
    });
  });
  await new Promise((done) => forward.listen(port, '127.0.0.1', done));
  try {
    return await ask(issuer);
  } finally {
    forward.closeAllConnections();
    await new Promise((done) => forward.close(done));
    await front.stop();
    await op.stop();
  }
}

for (const [fault, [answer, expected]] of Object.entries(ways)) {
  test(`found: ${fault}`, async () => {
    const said = await behind(answer, (issuer) => doctor({ idp_provider_url: issuer }));
    const found = findings(said);
    assert.equal(found.length, 1, `${said.out}${said.err}`);
    assert.match(found[0], expected);
    table.push([fault, found[0]]);
  });
}

test('a process that runs says that its callback is not registered, before anybody meets the provider\'s own page', async () => {
  const op = await provider({ CALLBACKS: `${callback}/`, LOGOUTS: signedOut });
  const state = fs.mkdtempSync(path.join(os.tmpdir(), 'portcullis-doctor-'));
  const config = path.join(state, 'config.json');
  fs.writeFileSync(config, JSON.stringify({
    state_dir: state, authenticate_service_url: 'https://authenticate.localhost:8443', idp_provider: 'cognito', address: '127.0.0.1:0',
    health_check_addr: '127.0.0.1:0', idp_provider_url: op.issuer, idp_client_id: 'confidential', idp_client_secret: secret, routes: [],
  }));
  const server = await run(['run', '-c', config], {}, /"message":"nobody can sign in"/);
  try {
    const records = server.log.split('\n').filter((line) => line.startsWith('{')).map((line) => JSON.parse(line));
    const said = records.find(({ message }) => message === 'nobody can sign in');
    assert.match(said.finding, /is registered there as .*callback\/, which differs by a slash at the end/);
    const health = records.find(({ message }) => message === 'health').address;
    const status = await (await fetch(`http://${health}/status`)).json();
    assert.deepEqual(status.identity_providers[0].findings, [said.finding]);
  } finally {
    await server.stop();
    await op.stop();
    fs.rmSync(state, { recursive: true });
  }
});
