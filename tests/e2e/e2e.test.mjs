// End to end: the built binary, an independent OpenID provider shaped like Amazon Cognito, headless Chromium.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import http from 'node:http';
import http2 from 'node:http2';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { after, before, test as any } from 'node:test';
import { browser, choose, freePort, out, person, replay, run, secret, signIn, stack } from './lib.mjs';

// A test that hangs fails, and the others go on; the longest takes ten seconds.
const test = (name, run) => any(name, { timeout: 120000 }, run);

let chrome;
before(async () => { chrome = await browser(); });
after(async () => { await chrome.close(); });

const shown = async (page) => JSON.parse(await page.textContent('#headers'));
const picture = (page, name) => page.screenshot({ path: path.join(out, `${name}.png`), fullPage: true });

async function withStack(options, run) {
  const whole = await stack(options);
  try { await run(whole); } finally { await whole.stop(); }
}

test('a person signs in, sees the page they wanted, signs out and comes back', () => withStack({}, async ({ port, auth }) => {
  const jane = await person(chrome);
  const page = await jane.newPage();
  const wanted = `https://app.localhost:${port}/deep/page?x=1`;
  await signIn(page, wanted, 'jane');
  assert.equal(page.url(), wanted);
  const headers = await shown(page);
  assert.equal(headers['x-pomerium-claim-email'], 'jane@example.com');
  assert.equal(headers['x-pomerium-claim-cognito-groups'], 'admins,dev');
  assert.equal(headers['x-pomerium-claim-custom-team'], 'blue');
  assert.equal(headers.cookie, undefined);
  assert.match(headers['x-pomerium-jwt-assertion'], /^eyJ/);

  await page.goto(`https://admin.localhost:${port}/`);
  assert.equal(await page.textContent('#path'), 'GET /', 'the second host asks nobody again');
  await page.goto(`https://app.localhost:${port}/.pomerium/`);
  assert.match(await page.textContent('main'), /Jane Doe[\s\S]*jane@example\.com[\s\S]*Administration/);

  const kept = await jane.cookies();
  const replayed = (host) => replay(port, `${host}.localhost`, kept.filter((cookie) => cookie.domain === `${host}.localhost`));
  assert.deepEqual([await replayed('app'), await replayed('admin')], [200, 200]);
  await page.click('text=Sign out');
  await page.waitForURL(`${auth}/.pomerium/signed_out`);
  assert.match(await page.textContent('h1'), /signed out/);
  assert.deepEqual([await replayed('app'), await replayed('admin')], [401, 401], 'a kept copy of a cookie is worth nothing');
  await signIn(page, `https://app.localhost:${port}/again`, 'bob');
  assert.equal((await shown(page))['x-pomerium-claim-email'], 'bob@example.com');
  await jane.close();
}));

test('somebody who may not pass is told for whom, why, and how to get out', () => withStack({}, async ({ port }) => {
  const bob = await person(chrome);
  const page = await bob.newPage();
  await signIn(page, `https://admin.localhost:${port}/`, 'bob');
  const text = await page.textContent('main');
  for (const part of ['bob@example.com', 'groups-unauthorized', 'Ask ops@example.com']) assert.ok(text.includes(part), `${part}: ${text}`);
  assert.match(text, /This page is for the group admins\. You are signed in as bob@example\.com, in no group/);
  await picture(page, 'refused');
  // The provider still knows bob; it asks all the same, and whoever signs in there comes back to this page.
  await page.click('text=Sign in as someone else');
  await choose(page, 'jane');
  await page.waitForURL(`https://admin.localhost:${port}/`);
  assert.equal((await shown(page))['x-pomerium-claim-email'], 'jane@example.com');
  await bob.close();
}));

test('the fragment of the wanted address survives the sign-in', () => withStack({}, async ({ port, auth }) => {
  const jane = await person(chrome);
  const page = await jane.newPage();
  const wanted = `https://app.localhost:${port}/deep?x=1#/route/7?y=${encodeURIComponent('"><script>')}`;
  await signIn(page, wanted, 'jane');
  assert.equal(page.url(), wanted);
  // The provider knows jane already: no page of its own is shown.
  await page.goto(`https://admin.localhost:${port}/#there`);
  assert.equal(page.url(), `https://admin.localhost:${port}/#there`);
  await page.goto(`https://app.localhost:${port}/plain`);
  assert.equal(page.url(), `https://app.localhost:${port}/plain`);
  await page.goto(`${auth}/.pomerium/`);
  assert.equal(await page.evaluate(() => sessionStorage.length), 0, 'nothing is left behind');
  // Without scripts the page is found without its fragment.
  const plain = await person(chrome, { javaScriptEnabled: false });
  const other = await plain.newPage();
  await signIn(other, wanted, 'jane');
  await other.waitForURL(/deep/);
  assert.ok(other.url().startsWith(`https://app.localhost:${port}/deep?x=1`), other.url());
  await Promise.all([jane.close(), plain.close()]);
}));

const logo = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><circle cx="4" cy="4" r="4" fill="#c33"/></svg>';

test('a person chooses a provider with the keyboard, and the choice is remembered', () => withStack({ settings: ({ issuer, state }) => {
  fs.writeFileSync(path.join(state, 'logo.svg'), logo);
  const provider = { idp_provider: 'cognito', idp_provider_url: issuer };
  return {
    idp_provider: undefined, idp_provider_url: undefined, idp_client_id: undefined, idp_client_secret: undefined,
    providers: [
      { ...provider, id: 'staff', display_name: 'Staff of Example', idp_client_id: 'confidential', idp_client_secret: secret },
      { ...provider, id: 'partners', display_name: 'Partners', idp_client_id: 'publicpkce', logo_file: path.join(state, 'logo.svg') },
    ],
  };
} }, async ({ port }) => {
  const jane = await person(chrome);
  const page = await jane.newPage();
  const wanted = `https://app.localhost:${port}/deep?x=1`;
  await page.goto(wanted);
  assert.deepEqual(await page.locator('ul.choices a').allInnerTexts().then((all) => all.map((one) => one.split('\n').at(-1))), ['Staff of Example', 'Partners']);
  assert.ok(await page.locator('img').evaluate((image) => image.complete && image.naturalWidth > 0), 'the logo is shown under the policy of the page');
  for (const scheme of ['light', 'dark']) for (const width of [1280, 360]) {
    await page.emulateMedia({ colorScheme: scheme });
    await page.setViewportSize({ width, height: 700 });
    await picture(page, `choose-${scheme}-${width}`);
  }
  await page.keyboard.press('Tab'); // from the first, which has the focus
  await page.keyboard.press('Enter');
  await choose(page, 'jane');
  assert.equal(page.url(), wanted);
  assert.equal((await shown(page))['x-pomerium-claim-email'], 'jane@example.com');
  await page.goto(`https://app.localhost:${port}/.pomerium/sign_out`);
  await page.goto(wanted);
  const choices = await page.locator('ul.choices a').allInnerTexts();
  assert.match(choices[0], /Partners[\s\S]*last time/);
  await picture(page, 'choose-again');
  await jane.close();
}));

test('a page that wants a fresh sign-in asks for one and goes on', () => withStack({ routes: (port, to) => [
  { from: `https://app.localhost:${port}`, path: '/transfer', to, pass_identity_headers: true,
    policy: [{ allow: { and: [{ authenticated_user: true }] } }, { deny: { not: [{ auth_time: { within: '8s' } }] } }] },
  { from: `https://app.localhost:${port}`, to, pass_identity_headers: true, allow_any_authenticated_user: true },
] }, async ({ port }) => {
  const jane = await person(chrome);
  const page = await jane.newPage();
  await signIn(page, `https://app.localhost:${port}/`, 'jane');
  await page.waitForTimeout(9000);
  await page.goto(`https://app.localhost:${port}/`);
  assert.equal(await page.textContent('#path'), 'GET /', 'an old sign-in will do here');
  const asked = page.waitForRequest(/\/oauth2\/authorize\?/);
  await page.goto(`https://app.localhost:${port}/transfer?to=bob`);
  const parameters = new URL((await asked).url()).searchParams;
  assert.deepEqual([parameters.get('max_age'), parameters.get('prompt')], ['8', 'login']);
  await choose(page, 'jane');
  await page.waitForURL(`https://app.localhost:${port}/transfer?to=bob`);
  assert.equal(await page.textContent('#path'), 'GET /transfer?to=bob');
  await page.reload();
  assert.equal(await page.textContent('#path'), 'GET /transfer?to=bob', 'it is fresh for a while');
  await jane.close();
}));

test('three tabs at once all finish on their own page', () => withStack({}, async ({ port }) => {
  const jane = await person(chrome);
  const pages = await Promise.all([1, 2, 3].map(() => jane.newPage()));
  const urls = [`https://app.localhost:${port}/one`, `https://app.localhost:${port}/two`, `https://admin.localhost:${port}/three`];
  await Promise.all(pages.map((page, at) => page.goto(urls[at])));
  // All three stand on the provider's page; oidc-provider itself lets one browser do one interaction at a
  // time only when they share its cookie path, so they are finished one after another.
  for (const [at, page] of pages.entries()) {
    if (page.url() !== urls[at]) await page.click('#jane');
    await page.waitForURL(urls[at]);
  }
  await jane.close();
}));

test('a WebSocket passes through a protected route', () => withStack({}, async ({ port }) => {
  const jane = await person(chrome);
  const page = await jane.newPage();
  await signIn(page, `https://app.localhost:${port}/`, 'jane');
  const answered = await page.evaluate((url) => new Promise((done, fail) => {
    const socket = new WebSocket(url);
    socket.onopen = () => socket.send('hello');
    socket.onmessage = (event) => done(event.data);
    socket.onerror = () => fail(new Error('refused'));
  }), `wss://app.localhost:${port}/ws`);
  assert.equal(answered, 'jane@example.com: hello');
  // A page of another site cannot open one, although the browser would send the cookie.
  await page.goto(`https://open.localhost:${port}/`);
  const refused = await page.evaluate((url) => new Promise((done) => {
    const socket = new WebSocket(url);
    socket.onopen = () => done('open');
    socket.onerror = () => done('refused');
  }), `wss://app.localhost:${port}/ws`);
  assert.equal(refused, 'refused');
  await jane.close();
}));

test('a form that was sent after the session ended is kept', () => withStack({}, async ({ port }) => {
  const jane = await person(chrome);
  const page = await jane.newPage();
  await signIn(page, `https://app.localhost:${port}/form`, 'jane');
  await jane.clearCookies({ domain: 'app.localhost' });
  await jane.clearCookies({ domain: 'authenticate.localhost' });
  await page.click('text=save');
  if (await page.title() === 'login') await page.click('#jane');
  await page.waitForURL(/\/\.pomerium\/resume/);
  await picture(page, 'resume');
  await page.click('text=Send it now');
  assert.equal(await page.textContent('#path'), 'POST /save');
  assert.equal(await page.textContent('#body'), 'note=kept');
  await jane.close();
}));

test('a session outlives a server that was killed', () => withStack({}, async (whole) => {
  const jane = await person(chrome);
  const page = await jane.newPage();
  await signIn(page, `https://app.localhost:${whole.port}/before`, 'jane');
  await whole.restart('SIGKILL');
  await page.goto(`https://app.localhost:${whole.port}/after`);
  assert.equal(await page.textContent('#path'), 'GET /after');
  await jane.close();
}));

test('a callback from the history starts again and arrives', () => withStack({}, async ({ port, auth }) => {
  const jane = await person(chrome);
  const page = await jane.newPage();
  const callbacks = [];
  page.on('request', (request) => { if (request.url().startsWith(`${auth}/oauth2/callback`)) callbacks.push(request.url()); });
  await signIn(page, `https://app.localhost:${port}/wanted`, 'jane');
  await page.goto(callbacks[0]);
  assert.match(await page.textContent('h1'), /sign in again/);
  await picture(page, 'restart');
  await page.waitForURL(`https://app.localhost:${port}/wanted`);
  await jane.close();
}));

for (const [client, settings] of Object.entries({
  confidential: { idp_client_auth: 'basic' },
  confidentialpost: { idp_client_auth: 'post' },
  publicpkce: { idp_client_secret: undefined },
})) {
  test(`the client ${client} signs people in and renews their tokens`, () => withStack(
    { provider: { TOKEN_TTL: '3', ROTATE: client === 'confidential' ? '1' : '0' }, settings: { idp_client_id: client, ...settings } },
    async ({ port, server }) => {
      const jane = await person(chrome);
      const page = await jane.newPage();
      await signIn(page, `https://app.localhost:${port}/`, 'jane');
      for (let round = 0; round < 2; round += 1) {
        await new Promise((done) => setTimeout(done, 3200));
        await page.goto(`https://app.localhost:${port}/round${round}`);
        assert.equal(await page.textContent('#path'), `GET /round${round}`, server.log);
      }
      await jane.close();
    },
  ));
}

test('a scope that the client does not have is named', () => withStack(
  { settings: { idp_client_id: 'noprofile' } },
  async ({ port }) => {
    const jane = await person(chrome);
    const page = await jane.newPage();
    const called = page.waitForResponse((one) => one.url().includes('/oauth2/callback'));
    await page.goto(`https://app.localhost:${port}/`);
    assert.equal((await called).status(), 500);
    await page.waitForURL(/oauth2\/callback/);
    assert.match(await page.textContent('main'), /openid email profile[\s\S]*Login pages/);
    await picture(page, 'scope');
    await jane.close();
  },
));

test('a client that the provider does not know', () => withStack(
  { settings: { idp_client_secret: `${secret}x` } },
  async ({ port }) => {
    const jane = await person(chrome);
    const page = await jane.newPage();
    await signIn(page, `https://app.localhost:${port}/`, 'jane');
    assert.match(await page.textContent('main'), /idp_client_secret/);
    await jane.close();
  },
));

test('a person whom the provider refuses is told its reason', () => withStack({}, async ({ port }) => {
  const stranger = await person(chrome);
  const page = await stranger.newPage();
  await signIn(page, `https://app.localhost:${port}/`, 'stranger');
  await page.waitForURL(/\/oauth2\/callback/);
  assert.match(await page.textContent('main'), /did not let you in[\s\S]*User is not confirmed\./);
  assert.match(await page.textContent('.actions'), /Sign in again/);
  await stranger.close();
}));

test('a refresh token that is over ends the session, and the person signs in again', () => withStack(
  { provider: { TOKEN_TTL: '2', RT_TTL: '3' } },
  async ({ port }) => {
    const jane = await person(chrome);
    const page = await jane.newPage();
    await signIn(page, `https://app.localhost:${port}/`, 'jane');
    await new Promise((done) => setTimeout(done, 5200));
    await page.goto(`https://app.localhost:${port}/later`);
    if (await page.title() === 'login') await page.click('#jane');
    assert.equal(await page.textContent('#path'), 'GET /later');
    await jane.close();
  },
));

for (const [name, late, check] of [
  ['once', 1, async (page) => assert.equal(await page.textContent('#path'), 'GET /late')],
  ['always', Infinity, async (page) => assert.match(await page.textContent('main'), /The code was refused/)],
]) {
  test(`a code that has expired, ${name}, is not a dead end`, () => withStack({ provider: { CODE_TTL: '2' } }, async ({ port }) => {
    const jane = await person(chrome);
    const page = await jane.newPage();
    const wire = await jane.newCDPSession(page);
    await wire.send('Fetch.enable', { patterns: [{ urlPattern: '*/oauth2/callback*' }] });
    let held = 0;
    wire.on('Fetch.requestPaused', async ({ requestId }) => {
      held += 1;
      if (held <= late) await new Promise((done) => setTimeout(done, 3500));
      await wire.send('Fetch.continueRequest', { requestId });
    });
    await page.goto(`https://app.localhost:${port}/late`);
    await page.click('#jane');
    const held_twice = async () => { while (held < 2) await new Promise((done) => setTimeout(done, 50)); };
    await held_twice(); // the sign-in was begun again by itself
    await page.waitForURL(late === 1 ? /\/late$/ : /oauth2\/callback/);
    await page.waitForSelector(late === 1 ? '#path' : 'main');
    await picture(page, `code-expired-${name}`);
    await check(page);
    assert.equal(held, 2);
    await jane.close();
  }));
}

test('a sign-out URL that is not registered strands nobody', () => withStack(
  { provider: { LOGOUTS: 'https://elsewhere.example.com/' } },
  async ({ port, auth }) => {
    const jane = await person(chrome);
    const page = await jane.newPage();
    await signIn(page, `https://app.localhost:${port}/`, 'jane');
    await page.goto(`https://app.localhost:${port}/.pomerium/sign_out`);
    assert.equal(page.url(), `${auth}/.pomerium/signed_out`);
    await jane.close();
  },
));

test('gRPC passes to an upstream of cleartext HTTP/2, with its trailers, and is refused in its own terms', async () => {
  const upstream = http2.createServer();
  upstream.on('stream', (stream, headers) => {
    const sent = [];
    stream.on('data', (data) => sent.push(data));
    stream.on('end', () => {
      stream.respond({ ':status': 200, 'content-type': 'application/grpc', 'x-te': headers.te }, { waitForTrailers: true });
      stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0', 'grpc-message': 'fine' }));
      stream.end(Buffer.concat(sent));
    });
  });
  await new Promise((done) => upstream.listen(0, '127.0.0.1', done));
  const to = `h2c://127.0.0.1:${upstream.address().port}`;
  await withStack({ routes: (port) => [
    { from: `https://open.localhost:${port}`, to, allow_public_unauthenticated_access: true },
    { from: `https://app.localhost:${port}`, to, allow_any_authenticated_user: true },
  ] }, async ({ port }) => {
    const call = (host) => new Promise((done, fail) => {
      const client = http2.connect(`https://127.0.0.1:${port}`, { servername: host, rejectUnauthorized: false });
      client.on('error', fail);
      const stream = client.request({
        ':method': 'POST', ':path': '/service/Method', ':authority': `${host}:${port}`, 'content-type': 'application/grpc', te: 'trailers',
      });
      const answer = { body: [] };
      stream.on('response', (headers) => { answer.headers = headers; });
      stream.on('trailers', (trailers) => { answer.trailers = trailers; });
      stream.on('data', (data) => answer.body.push(data));
      stream.on('end', () => { client.close(); done(answer); });
      stream.end(Buffer.from([0, 0, 0, 0, 2, 8, 1]));
    });
    const served = await call('open.localhost');
    assert.equal(served.headers[':status'], 200);
    assert.equal(served.headers['x-te'], 'trailers');
    assert.deepEqual([...Buffer.concat(served.body)], [0, 0, 0, 0, 2, 8, 1]);
    assert.equal(served.trailers['grpc-status'], '0');
    const refused = await call('app.localhost');
    assert.equal(refused.headers[':status'], 200);
    assert.equal(refused.headers['grpc-status'], '16');
  }).finally(() => upstream.close());
});

test('a provider with a certificate authority of its own, under a name that only the configuration knows', async () => {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'portcullis-e2e-'));
  const [cert, key] = ['cert.pem', 'key.pem'].map((name) => path.join(directory, name));
  execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2', '-subj', '/CN=idp',
    '-addext', 'subjectAltName=DNS:idp.internal,DNS:login.localhost', '-addext', 'basicConstraints=critical,CA:FALSE',
    '-keyout', key, '-out', cert], { stdio: 'ignore' });
  const issuerPort = await freePort();
  const domainPort = await freePort();
  const issuer = `https://idp.internal:${issuerPort}/eu-west-2_KcLwCelr7`;
  const provider = {
    TLS_CERT: cert, TLS_KEY: key, ISSUER: issuer, DOMAIN: `https://login.localhost:${domainPort}`, ISSUER_PORT: issuerPort, DOMAIN_PORT: domainPort,
    // The stand-in calls itself.
    NODE_EXTRA_CA_CERTS: cert,
  };
  const settings = { idp_provider_url: issuer, idp_resolve: ['idp.internal=127.0.0.1'] };
  try {
    await withStack({ provider, settings: { ...settings, idp_ca_file: cert } }, async ({ port }) => {
      const jane = await person(chrome);
      const page = await jane.newPage();
      await signIn(page, `https://app.localhost:${port}/`, 'jane');
      assert.equal((await shown(page))['x-pomerium-claim-email'], 'jane@example.com');
      await jane.close();
    });
    await withStack({ provider, settings }, async ({ port }) => {
      const jane = await person(chrome);
      const page = await jane.newPage();
      const answer = await page.goto(`https://app.localhost:${port}/`);
      assert.equal(answer.status(), 503, 'an unknown authority is not believed');
      await jane.close();
    });
    // The name is known to the egress proxy alone.
    const asked = [];
    let open = true;
    const egress = http.createServer().on('connect', (request, client) => {
      asked.push(request.url);
      if (!open) return client.end('HTTP/1.1 403 Forbidden\r\n\r\n');
      const onward = net.connect(issuerPort, '127.0.0.1', () => {
        client.write('HTTP/1.1 200 OK\r\n\r\n');
        onward.pipe(client).pipe(onward);
      });
      onward.on('error', () => client.destroy());
      return client.on('error', () => onward.destroy());
    });
    await new Promise((done) => egress.listen(0, '127.0.0.1', done));
    const through = { idp_provider_url: issuer, idp_ca_file: cert, idp_http_proxy: `http://127.0.0.1:${egress.address().port}` };
    await withStack({ provider, settings: through }, async ({ port }) => {
      const jane = await person(chrome);
      const page = await jane.newPage();
      await signIn(page, `https://app.localhost:${port}/`, 'jane');
      assert.equal((await shown(page))['x-pomerium-claim-email'], 'jane@example.com');
      assert.ok(asked.length > 0 && asked.every((target) => target === `idp.internal:${issuerPort}`), asked.join());
      await jane.close();
    });
    open = false;
    await withStack({ provider, settings: through }, async ({ port, server }) => {
      const jane = await person(chrome);
      const page = await jane.newPage();
      const answer = await page.goto(`https://app.localhost:${port}/`);
      assert.equal(answer.status(), 503);
      assert.match(server.log, /the proxy 127\.0\.0\.1 refused a tunnel to idp\.internal: 403/);
      await jane.close();
    });
    egress.close();
  } finally {
    fs.rmSync(directory, { recursive: true });
  }
});

for (const [name, provider, check] of [
  ['a pool without a domain', { NO_DOMAIN: '1' }, async (page) => assert.match(await page.textContent('main'), /eu-west-2_KcLwCelr7 has no domain/)],
  ['a discovery document of before 2024', { OLD_DISCOVERY: '1' }, null],
  ['a clock 50 seconds ahead', { SKEW: '50' }, null],
  ['a clock 50 seconds behind', { SKEW: '-50' }, null],
  ['a clock 120 seconds ahead', { SKEW: '120' }, async (page) => assert.match(await page.textContent('main'), /compare the clocks/)],
  ['nobody has groups', { GROUPS: 'absent' }, null],
  ['no name', { NAME: 'absent' }, null],
]) {
  test(`the provider: ${name}`, () => withStack({ provider }, async ({ port }) => {
    const jane = await person(chrome);
    const page = await jane.newPage();
    await page.goto(`https://app.localhost:${port}/`);
    if (await page.title() === 'login') await page.click('#jane');
    if (check) await check(page);
    else assert.equal((await shown(page))['x-pomerium-claim-email'], 'jane@example.com');
    if (provider.OLD_DISCOVERY) {
      await page.goto(`https://app.localhost:${port}/.pomerium/sign_out`);
      assert.match(await page.textContent('h1'), /signed out/);
    }
    await jane.close();
  }));
}

for (const [sent, status] of [['true', 200], ['false', 403], ['absent', 403]]) {
  test(`an address that is verified: ${sent}`, () => withStack({
    provider: { EMAIL_VERIFIED: sent },
    routes: (port, to) => [{ from: `https://app.localhost:${port}`, to, allowed_domains: ['example.com'] }],
  }, async ({ port }) => {
    const jane = await person(chrome);
    const page = await jane.newPage();
    await page.goto(`https://app.localhost:${port}/`);
    const answer = page.waitForResponse((response) => response.url() === `https://app.localhost:${port}/` && [200, 403].includes(response.status()));
    await page.click('#jane');
    assert.equal((await answer).status(), status);
    if (status === 403) assert.match(await page.textContent('main'), /not verified/);
    await jane.close();
  }));
}

test('pages are shown in light and dark, narrow and wide, and work from the keyboard', () => withStack({}, async ({ port }) => {
  for (const [scheme, width] of [['light', 1280], ['dark', 1280], ['light', 360], ['dark', 360]]) {
    const bob = await person(chrome, { colorScheme: scheme, viewport: { width, height: 800 } });
    const page = await bob.newPage();
    await signIn(page, `https://admin.localhost:${port}/`, 'bob');
    await picture(page, `403-${scheme}-${width}`);
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= window.innerWidth), 'nothing is cut off');
    await page.keyboard.press('Tab');
    assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Sign in as someone else');
    await page.goto(`https://admin.localhost:${port}/.pomerium/`);
    await picture(page, `user-${scheme}-${width}`);
    await page.goto(`https://nowhere.localhost:${port}/`);
    await picture(page, `404-${scheme}-${width}`);
    await page.goto(`https://admin.localhost:${port}/.pomerium/signed_out`);
    await picture(page, `signed-out-${scheme}-${width}`);
    await bob.close();
  }
}));

// nginx as a cache that keeps whatever it is not forbidden to keep, whoever asked.
test('a shared cache in front shows nobody what was made for somebody else', () => withStack({}, async ({ port, state, auth }) => {
  const front = await freePort();
  const file = path.join(state, 'nginx.conf');
  fs.writeFileSync(file, `
    daemon off; master_process off; error_log stderr notice; pid ${state}/nginx.pid;
    events {}
    http {
      access_log off; client_body_temp_path ${state}/1; proxy_temp_path ${state}/2; fastcgi_temp_path ${state}/3;
      uwsgi_temp_path ${state}/4; scgi_temp_path ${state}/5; proxy_cache_path ${state}/cache keys_zone=all:1m;
      server {
        listen 127.0.0.1:${front};
        location / {
          proxy_pass https://127.0.0.1:${port}; proxy_ssl_server_name on; proxy_ssl_name $http_host; proxy_set_header Host $http_host;
          proxy_cache all; proxy_cache_key $http_host$request_uri; proxy_cache_valid any 10m; add_header x-cache $upstream_cache_status always;
        }
      }
    }`);
  const nginx = await run(['-c', file, '-p', state], {}, /start|using the/, ['/usr/sbin/nginx', 'nginx'].find((at) => fs.existsSync(at)) ?? 'nginx');
  const jane = await person(chrome);
  const page = await jane.newPage();
  await signIn(page, `https://app.localhost:${port}/`, 'jane');
  const cookie = (await jane.cookies()).filter(({ domain }) => domain === 'app.localhost').map(({ name, value }) => `${name}=${value}`).join('; ');
  const ask = (host, target, headers = {}) => new Promise((done, fail) => {
    http.get({ host: '127.0.0.1', port: front, path: target, agent: false, headers: { host: `${host}:${port}`, accept: 'text/html', ...headers } }, (answer) => {
      let body = '';
      answer.on('data', (data) => { body += data; });
      answer.on('end', () => done({ status: answer.statusCode, headers: answer.headers, body }));
    }).on('error', fail);
  });
  // The cache is one that keeps: what the application lets it keep of a public route comes from it.
  await ask('open.localhost', '/x');
  assert.equal((await ask('open.localhost', '/x')).headers['x-cache'], 'HIT');
  const targets = ['/.pomerium/', '/.pomerium/user', '/.pomerium/x.css', '/.pomerium/user/x.css', '/.pomerium/routes', '/.pomerium/signed_out',
    '/.pomerium/sign_in', '/.pomerium/callback/?pomerium_handoff=x', '/oauth2/callback?code=x&state=y', '/.pomerium/sign_out'];
  for (const host of ['app.localhost', 'authenticate.localhost', 'admin.localhost']) {
    for (const target of targets.filter((one) => one !== '/.pomerium/sign_out' || host === 'admin.localhost')) {
      const sent = host === 'app.localhost' ? { cookie } : {};
      await ask(host, target, sent);
      const second = await ask(host, target);
      assert.notEqual(second.headers['x-cache'], 'HIT', `${host}${target}`);
      assert.doesNotMatch(second.body, /jane/i, `${host}${target}`);
    }
  }
  // A page of an application that says nothing about caching.
  assert.match((await ask('app.localhost', '/mine', { cookie })).body, /jane@example\.com/);
  const anonymous = await ask('app.localhost', '/mine');
  assert.equal(anonymous.status, 302, anonymous.body);
  assert.doesNotMatch(anonymous.body, /jane/i);
  for (const target of ['/new', '/new']) assert.notEqual((await ask('app.localhost', target)).headers['x-cache'], 'HIT', 'a redirect to sign in is not kept');
  await nginx.stop();
  await jane.close();
}));

test('the demo lets jane in and refuses bob, and starts again where it was', async () => {
  const port = await freePort();
  for (const [user, expected] of [['jane', /Hello, Jane Doe/], ['bob', /You may not open this page/]]) {
    const demo = await run(['demo', '--port', String(port)], {}, /Open +(https:\S+)/);
    try {
      const visitor = await person(chrome);
      const page = await visitor.newPage();
      assert.equal(demo.found[1], `https://hello.localhost:${port}/`);
      await page.goto(demo.found[1]);
      await picture(page, 'demo-provider');
      await page.click(`button[value=${user}]`);
      await page.waitForURL(`https://hello.localhost:${port}/`);
      assert.match(await page.textContent('body'), expected);
      await picture(page, `demo-${user}`);
      await visitor.close();
    } finally {
      await demo.stop();
    }
  }
});
