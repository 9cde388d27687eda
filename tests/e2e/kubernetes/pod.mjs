// A pod without a cluster: what its container runs, with the mounts, the variables, the user and the rights that the manifest
// gives it, in namespaces of its own (bubblewrap), below a root that cannot be written.
import { spawn, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { binary } from '../lib.mjs';

// The key and the certificate of the Secret that the manifests expect, for *.example.com.
export function certificate() {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'portcullis-tls-'));
  const made = spawnSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '30',
    '-keyout', `${directory}/tls.key`, '-out', `${directory}/tls.crt`, '-subj', '/CN=example', '-addext', 'subjectAltName=DNS:*.example.com']);
  if (made.status !== 0) throw new Error(String(made.stderr));
  const read = (name) => fs.readFileSync(path.join(directory, name), 'utf8');
  const data = { 'tls.crt': read('tls.crt'), 'tls.key': read('tls.key') };
  fs.rmSync(directory, { recursive: true });
  return data;
}

const named = (objects, kind, name) => {
  const found = objects.find((one) => one.kind === kind && one.metadata.name === name);
  if (!found) throw new Error(`there is no ${kind} ${name}`);
  return found;
};

// The variables of a container, as the kubelet makes them.
export function environment(objects, container) {
  const variables = {};
  for (const { secretRef } of container.envFrom ?? []) Object.assign(variables, named(objects, 'Secret', secretRef.name).stringData);
  for (const { name, value, valueFrom } of container.env ?? []) {
    const from = valueFrom?.secretKeyRef;
    variables[name] = from ? named(objects, 'Secret', from.name).stringData[from.key] : value;
  }
  return variables;
}

// Makes the volumes of a pod; `remove` takes them away.
export class Volumes {
  constructor(objects, spec) {
    this.directory = fs.mkdtempSync(path.join(os.tmpdir(), 'portcullis-pod-'));
    this.spec = spec;
    this.environment = environment(objects, spec.containers[0]);
    for (const volume of spec.volumes) {
      const at = path.join(this.directory, volume.name);
      fs.mkdirSync(at);
      const data = volume.configMap ? named(objects, 'ConfigMap', volume.configMap.name).data
        : volume.secret ? named(objects, 'Secret', volume.secret.secretName).stringData
          : volume.persistentVolumeClaim ? (named(objects, 'PersistentVolumeClaim', volume.persistentVolumeClaim.claimName), {}) : {};
      for (const [name, text] of Object.entries(data)) fs.writeFileSync(path.join(at, name), text);
    }
  }

  // Runs a shell script in the pod, where the container's own command is `"$@"`.
  run(script, words = this.spec.containers[0].args) {
    const { containers: [container], securityContext: { runAsUser, runAsGroup } } = this.spec;
    const system = ['/lib', '/lib64', '/bin', '/sbin'].flatMap((at) => {
      if (!fs.existsSync(at)) return [];
      return fs.lstatSync(at).isSymbolicLink() ? ['--symlink', fs.readlinkSync(at), at] : ['--ro-bind', at, at];
    });
    const mounts = container.volumeMounts.flatMap(({ name, mountPath, readOnly }) =>
      [readOnly ? '--ro-bind' : '--bind', path.join(this.directory, name), mountPath]);
    const child = spawn('bwrap', ['--unshare-all', '--die-with-parent', '--clearenv', '--uid', `${runAsUser}`, '--gid', `${runAsGroup}`,
      '--cap-drop', 'ALL', '--ro-bind', '/usr', '/usr', ...system, '--dev', '/dev', '--tmpfs', '/dev/shm', '--proc', '/proc',
      '--ro-bind', path.resolve(binary), '/opt/portcullis', ...mounts, '--remount-ro', '/', '--setenv', 'PATH', '/usr/bin:/bin',
      ...Object.entries(this.environment).flatMap(([name, value]) => ['--setenv', name, value]),
      'sh', '-c', script, 'sh', '/opt/portcullis', ...words]);
    const said = { out: '', err: '' };
    child.stdout.on('data', (data) => { said.out += data; });
    child.stderr.on('data', (data) => { said.err += data; });
    return new Promise((done, fail) => {
      child.on('error', fail);
      child.on('close', (code) => done({ ...said, code }));
    });
  }

  remove() { fs.rmSync(this.directory, { recursive: true }); }
}
