// Other proxies in front of the application, with Portcullis deciding: the real ones, with the configurations in deploy/, an
// independent provider, and headless Chromium.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import https from 'node:https';
import { after, before, test as any } from 'node:test';
import { fronted, fronts } from './fronts.mjs';
import { binary, browser, person, signIn } from './lib.mjs';

const test = (name, run) => any(name, { timeout: 120000 }, run);

let chrome;
before(async () => { chrome = await browser(); });
after(async () => { await chrome.close(); });

const shown = async (page) => JSON.parse(await page.textContent('#headers'));

// A request as a program makes it.
const ask = (port, target, headers = {}, method = 'GET') => new Promise((done, fail) => {
  const request = https.request({
    host: '127.0.0.1', port, servername: 'app.localhost', path: target, method, rejectUnauthorized: false, agent: false,
    headers: { host: `app.localhost:${port}`, accept: 'application/json', ...headers },
  }, (answer) => {
    let body = '';
    answer.on('data', (data) => { body += data; });
    answer.on('end', () => done({ status: answer.statusCode, headers: answer.headers, body }));
  });
  request.on('error', fail).end();
});

const seen = (answer) => JSON.parse(/<pre id="headers">(.*?)<\/pre>/s.exec(answer.body)[1].replaceAll('&lt;', '<'));

for (const name of Object.keys(fronts)) {
  const familiar = name.includes('oauth2-proxy');
  test(`${name} forwards what Portcullis lets pass`, async () => {
    const { port, auth, server, front, state, stop } = await fronted(name);
    try {
      const jane = await person(chrome);
      const page = await jane.newPage();
      const wanted = `https://app.localhost:${port}/deep/page?x=1&y=a%20b`;
      if (familiar) {
        await page.goto(wanted);
        await page.click('a.button');
        await page.click('#bob');
      } else {
        await signIn(page, wanted, 'bob');
      }
      await page.waitForURL(wanted);
      assert.equal(await page.textContent('#path'), 'GET /deep/page?x=1&y=a%20b');
      const headers = await shown(page);
      assert.equal(headers[familiar ? 'x-email' : 'x-pomerium-claim-email'], 'bob@example.com');
      assert.doesNotMatch(headers.cookie ?? '', /_pomerium/, 'the application does not see the session');
      if (!familiar) assert.match(headers['x-pomerium-jwt-assertion'], /^eyJ/);

      // Other cookies get there, and what somebody says about themselves does not.
      const cookies = (await jane.cookies()).filter(({ domain }) => domain === 'app.localhost').map((one) => `${one.name}=${one.value}`);
      const cookie = ['theme=dark', ...cookies, 'b="2"'].join('; ');
      const spoofed = { 'x-pomerium-claim-email': 'root@example.com', 'x-pomerium-jwt-assertion': 'x.y.z', 'x-email': 'root@example.com', 'x-forwarded-for': '10.9.9.9' };
      const mine = seen(await ask(port, '/x', { cookie, ...spoofed }));
      assert.equal(mine.cookie.replaceAll(' ', ''), 'theme=dark;b="2"');
      const told = familiar ? ['x-email'] : ['x-pomerium-claim-email', 'x-pomerium-jwt-assertion'];
      assert.equal(mine[told[0]], 'bob@example.com');
      const nobody = seen(await ask(port, '/public', spoofed));
      for (const header of told) assert.equal(nobody[header] ?? '', '', `${header} of nobody`);

      // A program passes with a token, which goes no further; credentials of the application's own get there.
      const words = ['tokens', 'create', '--socket', `${state}/control.sock`, '--name', 'ci', '--claims', 'email=ci@example.com', '--claims', 'email_verified=true'];
      const token = execFileSync(binary, words, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
      for (const shown of [{ authorization: `Bearer ${token}` }, { 'x-pomerium-authorization': token }]) {
        const program = seen(await ask(port, '/x', shown));
        assert.equal(program[told[0]], 'ci@example.com');
        for (const header of Object.keys(shown)) assert.equal(program[header] ?? '', '', `${header} of a program`);
      }
      assert.equal(seen(await ask(port, '/x', { cookie, authorization: 'Digest theirs' })).authorization, 'Digest theirs');

      // Who may not pass, and who has to sign in, in the terms of who asks.
      const posted = await ask(port, '/x', { cookie, 'content-type': 'text/plain' }, 'POST');
      assert.equal(posted.status, 200);
      assert.match(posted.body, /POST \/x/);
      const anonymous = await ask(port, '/x');
      assert.equal(anonymous.status, familiar ? 302 : 401, anonymous.body);
      const refused = await ask(port, '/admin/x', { cookie });
      assert.equal(refused.status, 403, refused.body);
      for (const target of ['/public/..%2fadmin', '/public/%2e%2e/admin', '/public/..;/admin', '/public//../admin', '/public/%252e%252e/admin']) {
        const answer = await ask(port, target);
        // A proxy may have made it plain before it asked; then it forwards that.
        assert.ok(answer.status >= 300 || /GET \/public\/[a-z]*</.test(answer.body), `${target}: ${answer.status} ${answer.body}`);
      }
      const odd = await ask(port, '/x', { 'x-foo': '\u00ff\u00fe' }).catch(() => ({ status: 400 }));
      assert.ok(odd.status >= 300, `bytes that are no text let nobody in: ${odd.status} ${odd.body}`);
      assert.ok((await ask(port, '/.pomerium/auth/forward', { 'x-forwarded-uri': '/public' })).status >= 400, 'clients are told nothing');
      if (!familiar) {
        assert.equal(JSON.parse(anonymous.body).error, 'sign-in required');
        await page.goto(`https://app.localhost:${port}/admin/x`);
        assert.match(await page.textContent('main'), /This page is for the group admins\. You are signed in as bob@example\.com/);
        await page.goto(wanted);
      }

      // A tunnel, from a page of this host and from none other.
      if (!familiar && !name.startsWith('Traefik')) {
        const talk = (url) => page.evaluate((to) => new Promise((done) => {
          const socket = new WebSocket(to);
          socket.onopen = () => socket.send('hello');
          socket.onmessage = (event) => done(event.data);
          socket.onerror = () => done('refused');
        }), url);
        assert.equal(await talk(`wss://app.localhost:${port}/ws`), 'bob@example.com: hello');
        await page.goto(`${auth}/.pomerium/signed_out`);
        assert.equal(await talk(`wss://app.localhost:${port}/ws`), 'refused', 'a page of another site opens none');
      }

      // The end of the session, everywhere.
      await page.goto(`https://app.localhost:${port}${familiar ? '/oauth2' : '/.pomerium'}/sign_out`);
      await page.waitForURL(`${auth}/.pomerium/signed_out`);
      assert.equal((await ask(port, '/x', { cookie })).status, familiar ? 302 : 401);

      // No decision is no.
      await server.stop();
      for (const target of ['/x', '/public']) {
        const undecided = await ask(port, target, { cookie });
        assert.ok(undecided.status >= 500, `${target}: ${undecided.status} ${undecided.body}`);
      }
      // What Envoy was told besides, which it writes when it stops.
      if (name === 'Envoy over gRPC') {
        await front.stop();
        assert.match(front.log, /GET \/deep\/page 200 bob@example\.com \["user-ok"\]/);
        assert.match(front.log, /GET \/admin\/x 403 bob@example\.com \["groups-unauthorized"\]/);
      }
      await jane.close();
    } finally {
      await stop();
    }
  });
}
