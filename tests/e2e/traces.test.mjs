// Traces as a collector receives them: Rotel, which takes OTLP over gRPC and HTTP and says what it got.
import assert from 'node:assert/strict';
import fs from 'node:fs';
import http from 'node:http';
import os from 'node:os';
import path from 'node:path';
import { test as any } from 'node:test';
import { fileURLToPath } from 'node:url';
import { application, binary, freePort, launch as start, pause, until as patiently } from './lib.mjs';

const until = (what, condition) => patiently(what, condition, 20000);
const test = (name, run) => any(name, { timeout: 60000 }, run);
const root = path.join(path.dirname(fileURLToPath(import.meta.url)), '../..');
const TRACE = '0af7651916cd43dd8448eb211c80319c';
const PARENT = 'b7ad6b7169203331';
const get = (port, headers) => new Promise((done, fail) => {
  http.get({ host: '127.0.0.1', port, path: '/x', headers: { host: 'app.localhost', ...headers } }, (answer) => {
    answer.resume();
    answer.on('end', () => done(answer.statusCode));
  }).on('error', fail);
});

async function gate(app, more) {
  const state = fs.mkdtempSync(path.join(os.tmpdir(), 'portcullis-traces-'));
  const config = path.join(state, 'config.json');
  fs.writeFileSync(config, JSON.stringify({
    address: '127.0.0.1:0', health_check_addr: '127.0.0.1:0', insecure_server: true, state_dir: state, authenticate_service_url: 'http://authenticate.localhost',
    idp_provider: 'oidc', idp_provider_url: 'http://127.0.0.1:9', idp_client_id: 'x', idp_client_secret: 'a-secret-of-ones-own', trusted_proxies: ['127.0.0.1/32'],
    routes: [{ from: 'http://app.localhost', to: `http://127.0.0.1:${app.port}`, allow_public_unauthenticated_access: true }],
  }));
  const child = start(binary, ['run', '-c', config], { OTEL_TRACES_EXPORTER: 'otlp', OTEL_BSP_SCHEDULE_DELAY: '100', OTEL_SERVICE_NAME: 'gate', ...more });
  const address = await until('listening', () => /"listening","address":"127\.0\.0\.1:(\d+)"/.exec(child.log));
  return Object.assign(child, { port: Number(address[1]), remove: async () => { await child.stop(); fs.rmSync(state, { recursive: true }); } });
}

async function collector() {
  const [grpc, web] = [await freePort(), await freePort()];
  const child = start(path.join(root, 'target/rotel/rotel/rotel-agent'), ['start', '--exporter', 'blackhole', '--debug-log', 'traces', '--debug-log-verbosity', 'detailed',
    '--otlp-grpc-endpoint', `127.0.0.1:${grpc}`, '--otlp-http-endpoint', `127.0.0.1:${web}`], { ROTEL_ENVIRONMENT: 'test' });
  await until('the collector', async () => {
    await pause(200);
    return get(web, {}).then(() => true, () => child.exitCode !== null && assert.fail(child.log));
  });
  return Object.assign(child, { grpc, web });
}

const ways = {
  grpc: ({ grpc }) => ({ OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc', OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${grpc}` }),
  'grpc, for traces alone': ({ grpc }) => ({ OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: 'grpc', OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: `http://127.0.0.1:${grpc}/` }),
  'http/protobuf': ({ web }) => ({ OTEL_EXPORTER_OTLP_PROTOCOL: 'http/protobuf', OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${web}` }),
};
for (const [name, variables] of Object.entries(ways)) {
  test(`a collector receives the spans of a request (${name})`, async () => {
    const app = await application();
    const receives = await collector();
    const sends = await gate(app, variables(receives));
    assert.equal(await get(sends.port, { traceparent: `00-${TRACE}-${PARENT}-01` }), 200);
    const seen = () => (receives.log.match(new RegExp(TRACE, 'g')) ?? []).length;
    await until('the trace', () => seen() >= 3).catch((error) => assert.fail(`${error.message}\n${receives.log.slice(-2000)}\n${sends.log}`));
    await pause(200);
    assert.equal(seen(), 3, receives.log);
    assert.match(receives.log, new RegExp(PARENT), 'the span that was sent is the parent');
    assert.match(receives.log, /service\.name: Str\(gate\)|service\.name.*gate/);
    assert.doesNotMatch(sends.log, /traces cannot be sent on/);
    await sends.remove();
    await receives.stop();
    await app.stop();
  });
}

test('a collector that does not take them is named, and nobody waits', async () => {
  const app = await application();
  const receives = await collector();
  const wrong = await gate(app, { OTEL_EXPORTER_OTLP_PROTOCOL: 'grpc', OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${receives.web}` });
  assert.equal(await get(wrong.port, {}), 200);
  await until('a complaint', () => /traces cannot be sent on; they are dropped/.test(wrong.log));
  await wrong.remove();
  await receives.stop();
  await app.stop();
});
