// What is in deploy/kubernetes and deploy/helm, rendered by kustomize and Helm themselves: every object holds against the
// schemas that Kubernetes publishes, what refers to something refers to something that is there, and each container starts
// with its configuration, its variables, its user and its rights. There is no cluster here: what only one shows (scheduling, load balancers, network
// policies at work) is not shown.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, before, test as any } from 'node:test';
import { fileURLToPath } from 'node:url';
import { PrometheusRule } from '@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PrometheusRule';
import { ServiceMonitor } from '@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor';
import { Volumes, certificate, environment } from './kubernetes/pod.mjs';

const test = (name, run) => any(name, { timeout: 120000 }, run);
const root = path.join(path.dirname(fileURLToPath(import.meta.url)), '../..');
// The oldest version of Kubernetes that the chart is for, one in between, and the newest that there are schemas of.
const versions = ['1.25', '1.31', '1.37'];
const tools = path.join(root, 'target/kubernetes');

function output(command, words, { input, fails = false } = {}) {
  const env = { ...process.env, PATH: `${tools}/bin:${root}/target/debian/usr/bin:${process.env.PATH}`, PYTHONPATH: tools };
  const ran = spawnSync(command, words, { input, cwd: root, env, maxBuffer: 1 << 26, encoding: 'utf8' });
  assert.ifError(ran.error);
  assert.equal(ran.status !== 0, fails, `${command} ${words.join(' ')}\n${ran.stderr}\n${fails ? ran.stdout : ''}`);
  return fails ? ran.stderr : ran.stdout;
}

const validated = (manifests) => JSON.parse(output('python3', ['tests/e2e/kubernetes/validate.py', ...versions], { input: manifests }));
const kustomize = (directory) => validated(output('kustomize', ['build', `deploy/kubernetes/${directory}`]));

const values = {
  config: {
    authenticate_service_url: 'https://authenticate.example.com', idp_provider: 'cognito', idp_provider_url: 'eu-west-2_KcLwCelr7',
    idp_client_id: '304a12ktcc5djt9d7enj6dsjkg', idp_scopes: ['openid', 'email', 'profile'],
    routes: [{ from: 'https://whoami.example.com', to: 'http://whoami', policy: [{ allow: { or: [{ 'claim/cognito:groups': 'admins' }] } }] }],
  },
  secrets: { IDP_CLIENT_SECRET: 'a-secret-of-ones-own', SHARED_SECRET: 'q1Zc0nJt1h8m7yM5m3qJb4m7pVw0yqv1C3eXkq0mZ3E=' },
};
const redis = { sessionStore: { type: 'redis' }, secrets: { ...values.secrets, DATABROKER_STORAGE_CONNECTION_STRING: 'redis://redis.internal:6379/0' } };

let scratch;
before(() => { scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'portcullis-kubernetes-')); });
after(() => fs.rmSync(scratch, { recursive: true }));

function template(more, options) {
  const file = path.join(scratch, 'values.json');
  fs.writeFileSync(file, JSON.stringify({ ...values, ...more }));
  return output('helm', ['template', 'gate', 'deploy/helm', '--namespace', 'portcullis', '-f', file], options);
}
const helm = (more) => validated(template(more));

const everything = {
  serviceMonitor: { enabled: true, labels: { release: 'prometheus' } }, prometheusRule: { enabled: true }, dashboard: { enabled: true },
  service: { redirectHttp: true, annotations: { 'service.beta.kubernetes.io/aws-load-balancer-type': 'nlb' }, loadBalancerClass: 'service.k8s.aws/nlb', loadBalancerSourceRanges: ['10.0.0.0/8'] },
  image: { digest: `sha256:${'0'.repeat(64)}` }, imagePullSecrets: [{ name: 'registry' }],
  serviceAccount: { annotations: { 'eks.amazonaws.com/role-arn': 'arn:aws:iam::1:role/x' } },
  podAnnotations: { a: 'b' }, podLabels: { team: 'platform' }, priorityClassName: 'high', nodeSelector: { 'kubernetes.io/arch': 'arm64' },
  tolerations: [{ key: 'x', operator: 'Exists' }], affinity: { nodeAffinity: {} },
  extraEnv: [{ name: 'LOG_LEVEL', value: 'debug' }], extraVolumes: [{ name: 'extra', emptyDir: {} }], extraVolumeMounts: [{ name: 'extra', mountPath: '/extra' }],
};

// Each way of deploying.
const renderings = {
  'kustomize base': () => kustomize('base'),
  'kustomize replicas': () => kustomize('replicas'),
  'kustomize services': () => kustomize('services'),
  'kustomize base and monitoring': () => [...kustomize('base'), ...kustomize('monitoring')],
  'kustomize base and doctor': () => [...kustomize('base'), ...kustomize('doctor')],
  'kustomize replicas and doctor': () => [...kustomize('replicas'), ...kustomize('doctor')],
  'helm': () => helm({}),
  'helm, sessions in memory': () => helm({ sessionStore: { type: 'memory' } }),
  'helm, replicas': () => helm({ ...redis, replicaCount: 3 }),
  'helm, autoscaling': () => helm({ ...redis, autoscaling: { enabled: true } }),
  'helm, split': () => helm({ split: { enabled: true }, replicaCount: 3 }),
  'helm, split with several that decide': () => helm({ ...redis, split: { enabled: true, authorizeReplicaCount: 2 }, autoscaling: { enabled: true } }),
  'helm, certificates by ACME': () => helm({ tls: { existingSecret: '' }, service: { redirectHttp: true }, config: { ...values.config, autocert: true } }),
  'helm, certificates by ACME, replicas': () => helm({ ...redis, replicaCount: 2, tls: { existingSecret: '' }, config: { ...values.config, autocert: true } }),
  'helm, a long name': () => helm({ nameOverride: 'a-name-of-many-words-'.repeat(4), image: { tag: 'v'.repeat(80) }, split: { enabled: true } }),
  'helm, everything': () => helm(everything),
};

// What the manifests leave to whoever fills them in, filled in.
const placeholders = {
  '${AWS_REGION}': 'eu-west-2', '${USER_POOL_ID}': 'eu-west-2_KcLwCelr7', '${APP_CLIENT_ID}': '304a12ktcc5djt9d7enj6dsjkg',
  '${APP_CLIENT_SECRET}': 'a-secret-of-ones-own', '${SHARED_SECRET}': values.secrets.SHARED_SECRET,
  '${DATABROKER_STORAGE_CONNECTION_STRING}': 'redis://redis.internal:6379/0',
};
const tls = certificate();
function filled(objects) {
  const inside = (value) => {
    if (typeof value === 'string') return Object.entries(placeholders).reduce((text, [from, to]) => text.replaceAll(from, to), value);
    if (Array.isArray(value)) return value.map(inside);
    return value && typeof value === 'object' ? Object.fromEntries(Object.entries(value).map(([key, one]) => [key, inside(one)])) : value;
  };
  const given = { apiVersion: 'v1', kind: 'Secret', metadata: { name: 'portcullis-tls' }, stringData: tls };
  return [...objects.map((one) => (['ConfigMap', 'Secret'].includes(one.kind) ? inside(one) : one)), given];
}

const podOf = (one) => (one.kind === 'Pod' ? { metadata: one.metadata, spec: one.spec } : one.spec.template);
const kept = (objects) => objects.filter((one) => ['Deployment', 'Job', 'Pod'].includes(one.kind));
const ours = (objects) => kept(objects).filter((one) => podOf(one).spec.containers[0].args);
const selects = (selector, labels) => Object.entries(selector).every(([key, value]) => labels[key] === value);

// Names lead to something that is there.
function coherent(objects) {
  const pods = kept(objects).map(podOf);
  const ports = (chosen) => new Set(chosen.flatMap(({ spec }) => spec.containers[0].ports ?? []).map(({ name }) => name));
  const there = (kind, name) => assert.ok(objects.some((one) => one.kind === kind && one.metadata.name === name), `no ${kind} ${name}`);
  const identities = objects.map((one) => `${one.kind} ${one.metadata.name}`);
  assert.equal(new Set(identities).size, identities.length, `${identities}`);
  for (const one of objects) {
    const at = `${one.kind} ${one.metadata.name}`;
    if (one.kind === 'Deployment') assert.ok(selects(one.spec.selector.matchLabels, one.spec.template.metadata.labels), at);
    if (one.kind === 'Service') {
      const chosen = pods.filter(({ metadata }) => selects(one.spec.selector, metadata.labels));
      assert.ok(chosen.length, `${at} selects nothing`);
      for (const { targetPort } of one.spec.ports) assert.ok(ports(chosen).has(targetPort), `${at}: ${targetPort}`);
    }
    if (one.kind === 'NetworkPolicy') {
      const chosen = pods.filter(({ metadata }) => selects(one.spec.podSelector.matchLabels, metadata.labels));
      assert.ok(chosen.length, `${at} selects nothing`);
      for (const { ports: named = [], from = [] } of one.spec.ingress ?? []) {
        for (const { port } of named) assert.ok(ports(chosen).has(port), `${at}: ${port}`);
        for (const { podSelector } of from.filter((peer) => peer.podSelector)) {
          assert.ok(pods.some(({ metadata }) => selects(podSelector.matchLabels, metadata.labels)), `${at}: nobody may come in`);
        }
      }
    }
    if (one.kind === 'PodDisruptionBudget') {
      assert.equal(pods.filter(({ metadata }) => selects(one.spec.selector.matchLabels, metadata.labels)).length, 1, at);
    }
    if (one.kind === 'HorizontalPodAutoscaler') {
      there('Deployment', one.spec.scaleTargetRef.name);
      const scaled = objects.find((other) => other.kind === 'Deployment' && other.metadata.name === one.spec.scaleTargetRef.name);
      assert.ok(!('replicas' in scaled.spec), 'the autoscaler and the Deployment both say how many');
      assert.ok(scaled.spec.template.spec.containers[0].resources.requests.cpu, 'nothing to compare with');
    }
    if (one.kind === 'ServiceMonitor') {
      const watched = objects.filter((other) => other.kind === 'Service' && selects(one.spec.selector.matchLabels, other.metadata.labels ?? {}));
      assert.equal(watched.length, 1, at);
      for (const { port } of one.spec.endpoints) assert.ok(watched[0].spec.ports.some(({ name }) => name === port), `${at}: ${port}`);
      assert.equal(new ServiceMonitor(one).validate(), undefined);
    }
    if (one.kind === 'PrometheusRule') {
      assert.equal(new PrometheusRule(one).validate(), undefined);
      assert.ok(one.spec.groups[0].rules.length > 5);
    }
  }
  for (const { metadata, spec } of pods) {
    const [container] = spec.containers;
    for (const probe of ['startupProbe', 'readinessProbe', 'livenessProbe'].filter((one) => container[one])) {
      assert.ok(container.ports.some(({ name }) => name === container[probe].httpGet.port), `${metadata.name}: ${probe}`);
    }
    for (const { name } of container.volumeMounts ?? []) assert.ok(spec.volumes.some((volume) => volume.name === name), name);
    for (const volume of spec.volumes ?? []) {
      if (volume.configMap) there('ConfigMap', volume.configMap.name);
      if (volume.secret) there('Secret', volume.secret.secretName);
      if (volume.persistentVolumeClaim) there('PersistentVolumeClaim', volume.persistentVolumeClaim.claimName);
    }
    for (const { secretRef } of container.envFrom ?? []) there('Secret', secretRef.name);
    if (spec.serviceAccountName) there('ServiceAccount', spec.serviceAccountName);
  }
}

// What a compromised process could do with its container.
function confined({ spec }) {
  const [{ securityContext: own, resources, volumeMounts }] = spec.containers;
  assert.equal(spec.automountServiceAccountToken, false);
  assert.ok(spec.securityContext.runAsNonRoot && spec.securityContext.runAsUser > 0);
  assert.equal(spec.securityContext.seccompProfile.type, 'RuntimeDefault');
  assert.deepEqual([own.allowPrivilegeEscalation, own.readOnlyRootFilesystem, own.capabilities], [false, true, { drop: ['ALL'] }]);
  assert.ok(resources.limits.memory);
  assert.ok(volumeMounts.every(({ subPath }) => !subPath), 'a subPath never sees a change');
  assert.deepEqual(volumeMounts.filter(({ readOnly }) => !readOnly).map(({ mountPath }) => mountPath).filter((at) => at !== '/extra'), ['/var/lib/portcullis']);
}

// There is time for all of a drain, and for what is saved after it.
function drains(objects, deployment) {
  const { spec } = podOf(deployment);
  const { DRAIN_TIMEOUT = '30s' } = environment(objects, spec.containers[0]);
  assert.ok(spec.terminationGracePeriodSeconds >= parseInt(DRAIN_TIMEOUT) + 15, DRAIN_TIMEOUT);
  // Nobody stands in for a process that goes before the next one comes.
  assert.equal(deployment.spec.strategy.type === 'Recreate', DRAIN_TIMEOUT === '10s', deployment.metadata.name);
}

for (const [name, render] of Object.entries(renderings)) {
  test(`${name}: the objects hold against the published schemas, and each container takes its configuration`, async () => {
    const objects = filled(render());
    coherent(objects);
    const mine = ours(objects);
    assert.ok(mine.length);
    for (const one of mine) {
      const pod = podOf(one);
      confined(pod);
      if (one.kind === 'Deployment') drains(objects, one);
      const volumes = new Volumes(objects, pod.spec);
      const [, ...where] = pod.spec.containers[0].args;
      const checked = await volumes.run('"$@"', ['check', ...where]);
      volumes.remove();
      assert.equal(checked.code, 0, `${one.metadata.name}: ${checked.err}`);
      assert.match(checked.out, /^https:\/\/authenticate\.example\.com\/oauth2\/callback$/m);
      assert.doesNotMatch(checked.err, /warning: (?!environment: (AUTHORIZE|OVERRIDE))/, one.metadata.name);
    }
    // More than one process keeps sessions only where they are shared.
    for (const one of mine.filter(({ kind }) => kind === 'Deployment')) {
      const [container] = podOf(one).spec.containers;
      const variables = environment(objects, container);
      const config = objects.find((other) => other.kind === 'ConfigMap' && other.data['config.yaml']).data['config.yaml'];
      const store = variables.DATABROKER_STORAGE_TYPE ?? /databroker_storage_type: (\w+)/.exec(config)[1];
      const several = one.spec.replicas !== 1;
      assert.ok(variables.SERVICES === 'proxy,authenticate' || !several || store === 'redis', `${one.metadata.name}: ${store}`);
      const keeps = store === 'file' && variables.SERVICES !== 'proxy,authenticate';
      assert.ok(!several || !keeps);
      assert.equal(one.spec.strategy.type, keeps ? 'Recreate' : 'RollingUpdate', one.metadata.name);
      // What only asks has no secret of the provider.
      assert.equal('IDP_CLIENT_SECRET' in variables, variables.SERVICES !== 'proxy,authenticate');
    }
  });
}

// The probes of the manifest, then a request, then TERM; where the kubelet would stand.
const alive = (container) => {
  const port = (name) => container.ports.find((one) => one.name === name).containerPort;
  const probe = ({ httpGet }) => `http://127.0.0.1:${port(httpGet.port)}${httpGet.path}`;
  return `"$@" >/dev/shm/log 2>&1 & pid=$!
for i in $(seq 100); do curl -sf -o /dev/null ${probe(container.startupProbe)} && break; sleep 0.1; done
for url in ${probe(container.startupProbe)} ${probe(container.readinessProbe)} ${probe(container.livenessProbe)}; do
  curl -s -o /dev/null -w '%{http_code} %{url}\\n' $url; done
curl -s http://127.0.0.1:${port('metrics')}/metrics | grep -c '^portcullis_'
curl -sk -o /dev/null -w '%{http_code} %{redirect_url}\\n' --resolve whoami.example.com:8443:127.0.0.1 https://whoami.example.com:8443/
(: >/outside) 2>/dev/null && echo 'the root file system can be written'
ls /var/lib/portcullis
kill $pid; wait $pid; echo "exit $?"
grep -v '"INFO"' /dev/shm/log >&2`;
};

for (const name of ['kustomize base', 'helm', 'helm, sessions in memory']) {
  test(`${name}: the container runs as its manifest says, and its probes pass`, async () => {
    const objects = filled(renderings[name]());
    const { spec } = podOf(objects.find((one) => one.kind === 'Deployment' && one.metadata.name !== 'whoami'));
    const volumes = new Volumes(objects, spec);
    const ran = await volumes.run(alive(spec.containers[0]));
    volumes.remove();
    const [startup, readiness, liveness, metrics, request, ...rest] = ran.out.trim().split('\n');
    assert.deepEqual([startup, readiness, liveness].map((line) => line.slice(0, 4)), ['200 ', '200 ', '200 '], `${ran.out}\n${ran.err}`);
    assert.ok(Number(metrics) > 20, ran.out);
    assert.match(request, /^302 https:\/\/authenticate\.example\.com\//);
    assert.equal(rest.at(-1), 'exit 0', ran.out);
    assert.ok(!ran.out.includes('can be written'), ran.out);
    assert.equal(rest.includes('sessions.redb'), !name.includes('memory'), ran.out);
    // Nothing but the provider, which cannot be reached from here, is complained of.
    const complaints = ran.err.trim().split('\n').filter((line) => line && !/identity provider|cognito-idp/.test(line));
    assert.deepEqual(complaints, []);
  });
}

test('a process that is replaced waits for the balancer, and one that nobody stands in for does not wait', () => {
  const variables = (more) => {
    const objects = filled(helm(more));
    const [one] = ours(objects).filter(({ kind }) => kind === 'Deployment');
    const { DRAIN_DELAY, DRAIN_TIMEOUT } = environment(objects, podOf(one).spec.containers[0]);
    return [DRAIN_DELAY, DRAIN_TIMEOUT];
  };
  assert.deepEqual(variables({}), [undefined, '10s']);
  assert.deepEqual(variables(redis), ['25s', '55s']);
  assert.deepEqual(variables({ ...redis, service: { externalTrafficPolicy: 'Cluster' } }), [undefined, undefined]);
  assert.deepEqual(variables({ config: { ...values.config, drain_timeout: '20s' } }), [undefined, undefined], 'it is said in the file');
});

const refused = {
  'a split without a certificate': [{ split: { enabled: true }, tls: { existingSecret: '' } }, /split.enabled needs a certificate/],
  'a drain that is broken off': [{ config: { ...values.config, drain_timeout: '90s' } }, /terminationGracePeriodSeconds: 75 is too short for a drain_timeout of 90s/],
  'a drain that is broken off by default': [{ ...redis, terminationGracePeriodSeconds: 40 }, /terminationGracePeriodSeconds: 40 is too short for a drain_timeout of 55s/],
  'no configuration': [{ config: {} }, /config is empty/],
  'a configuration twice': [{ existingConfigMap: 'x' }, /config and existingConfigMap are both set/],
  'no secrets': [{ secrets: {} }, /secrets is empty/],
  'secrets twice': [{ existingSecret: 'x' }, /secrets and existingSecret are both set/],
  'replicas with a file': [{ replicaCount: 2 }, /2 processes cannot share sessions in `sessionStore.type: file`/],
  'replicas with memory': [{ replicaCount: 2, sessionStore: { type: 'memory' } }, /2 processes cannot share sessions in `sessionStore.type: memory`/],
  'autoscaling with a file': [{ autoscaling: { enabled: true } }, /10 processes cannot share/],
  'several that decide with a file': [{ split: { enabled: true, authorizeReplicaCount: 2 } }, /2 processes cannot share/],
  'a store without its address': [{ sessionStore: { type: 'postgres' } }, /DATABROKER_STORAGE_CONNECTION_STRING is missing/],
  'processes without a secret in common': [{ ...redis, replicaCount: 2, secrets: { ...redis.secrets, SHARED_SECRET: '' } }, /SHARED_SECRET is missing/],
  'a key of the chart\'s': [{ config: { ...values.config, state_dir: '/x' } }, /config.state_dir is set by the chart; what to use instead: sessionStore.persistence/],
  'certificates twice': [{ config: { ...values.config, certificates: [] } }, /config.certificates and tls.existingSecret are both set/],
  'certificates that end with the process': [{ sessionStore: { type: 'memory' }, config: { ...values.config, autocert: true } }, /config.autocert needs a place that outlives the process/],
  'certificates that each process orders': [{ split: { enabled: true }, config: { ...values.config, autocert: true } }, /each process would order certificates for itself/],
  'a store that is none': [{ sessionStore: { type: 'etcd' } }, /sessionStore.type: .*must be one of the following: "file", "memory", "redis", "postgres"/],
  'a value that is none': [{ replicas: 3 }, /Additional property replicas is not allowed/],
  'a value of another type': [{ replicaCount: '3' }, /replicaCount: Invalid type/],
  'a secret that is no variable': [{ secrets: { clientSecret: 'x' } }, /clientSecret/],
};
for (const [what, [more, sentence]] of Object.entries(refused)) {
  test(`helm refuses ${what}`, () => assert.match(template(more, { fails: true }), sentence));
}

test('an existing ConfigMap, Secret and claim are used, and none is made', () => {
  const { config, secrets, ...without } = { ...values, existingConfigMap: 'mine', existingSecret: 'mine-too', sessionStore: { persistence: { existingClaim: 'mine-as-well' } } };
  const file = path.join(scratch, 'existing.json');
  fs.writeFileSync(file, JSON.stringify(without));
  const objects = validated(output('helm', ['template', 'gate', 'deploy/helm', '-f', file]));
  assert.ok(!objects.some(({ kind }) => ['ConfigMap', 'Secret', 'PersistentVolumeClaim'].includes(kind)));
  const { spec } = podOf(objects.find(({ kind }) => kind === 'Deployment'));
  assert.deepEqual(spec.volumes.map(({ configMap, secret, persistentVolumeClaim }) => configMap?.name ?? secret?.secretName ?? persistentVolumeClaim?.claimName), ['mine', 'portcullis-tls', 'mine-as-well']);
  assert.deepEqual(spec.containers[0].envFrom, [{ secretRef: { name: 'mine-too' } }]);
});

test('a changed secret replaces the processes, a changed configuration does not', () => {
  const pod = (more) => JSON.stringify(podOf(helm(more).find(({ kind }) => kind === 'Deployment')));
  assert.equal(pod({ config: { ...values.config, log_level: 'debug' } }), pod({}));
  assert.notEqual(pod({ secrets: { ...values.secrets, IDP_CLIENT_SECRET: 'another' } }), pod({}));
  assert.ok(!pod({}).includes('a-secret-of-ones-own'));
});

test('the chart passes its linter, and its package has the dashboard and the alerts', () => {
  const file = path.join(scratch, 'lint.json');
  fs.writeFileSync(file, JSON.stringify(values));
  assert.match(output('helm', ['lint', '--strict', 'deploy/helm', '-f', file]), /1 chart\(s\) linted, 0 chart\(s\) failed/);
  output('helm', ['package', 'deploy/helm', '-d', scratch]);
  const read = (name) => output('tar', ['xzOf', path.join(scratch, 'portcullis-0.1.0.tgz'), `portcullis/files/${name}`]);
  for (const name of ['alerts.yaml', 'dashboard.json']) {
    assert.equal(read(name), fs.readFileSync(path.join(root, 'deploy/prometheus', name), 'utf8'));
  }
});

test('every value is described by the schema, and nothing else is', () => {
  const schema = JSON.parse(fs.readFileSync(path.join(root, 'deploy/helm/values.schema.json')));
  const defaults = JSON.parse(output('python3', ['-c', 'import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)'], {
    input: fs.readFileSync(path.join(root, 'deploy/helm/values.yaml')),
  }));
  const compare = (described, value, at) => {
    if (!described.properties) return;
    assert.equal(described.additionalProperties, false, at);
    assert.deepEqual(Object.keys(described.properties).filter((key) => key !== 'global').sort(), Object.keys(value).sort(), at);
    for (const [key, one] of Object.entries(value)) compare(described.properties[key], one, `${at}.${key}`);
  };
  compare(schema, defaults, 'values');
});

test('the versions in the chart are those of the program', () => {
  const version = /^version = "(.*)"$/m.exec(fs.readFileSync(path.join(root, 'Cargo.toml'), 'utf8'))[1];
  const chart = fs.readFileSync(path.join(root, 'deploy/helm/Chart.yaml'), 'utf8');
  assert.match(chart, new RegExp(`^version: ${version}$`, 'm'));
  assert.match(chart, new RegExp(`^appVersion: ${version}$`, 'm'));
  const images = output('kustomize', ['build', 'deploy/kubernetes/base']).match(/image: registry.*/g);
  assert.deepEqual(images, [`image: registry.example.com/portcullis:${version}`]);
});
