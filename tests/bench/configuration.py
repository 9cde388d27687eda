#!/usr/bin/env python3
"""Print the Portcullis configuration of one benchmark peer (YAML on standard output).

configuration.py KIND PORT UPSTREAM ISSUER CERT KEY DIR WORKERS SCHEME HOSTS PATHS
KIND: plain (a public route) or auth (signed in, claims and e-mail checked, identity headers and assertion sent).
HOSTS or PATHS > 0: that many routes; `hosts.lua` asks for r0.localhost, r1.localhost, ... or /r0/, /r1/, ..."""
import sys

kind, port, upstream, issuer, cert, key, directory, workers, scheme, hosts, paths = sys.argv[1:12]
hosts, paths = int(hosts), int(paths)
own = f"{scheme}://127.0.0.1:{port}"

if kind == "auth":
    rule = """
    allow_websockets: true
    pass_identity_headers: true
    policy:
      - allow:
          and:
            - email:
                ends_with: "@example.com"
            - claim/groups:
                has: ops"""
else:
    rule = """
    allow_websockets: true
    allow_public_unauthenticated_access: true"""


def route(source, prefix=None):
    where = f"\n    prefix: {prefix}" if prefix else ""
    return f"""  - from: {source}{where}
    to: http://{upstream}{rule}"""


if hosts:
    routes = [route(f"{scheme}://r{i}.localhost") for i in range(hosts)] + [route(own)]
elif paths:
    routes = [route(own, f"/r{i}/") for i in range(paths)] + [route(own)]
else:
    routes = [route(own)]

print(f"""address: 127.0.0.1:{port}
workers: {workers}
state_dir: {directory}/state
health_check_addr: 127.0.0.1:0
authenticate_service_url: {own}
idp_provider: oidc
idp_provider_url: {issuer}
idp_client_id: bench
idp_client_secret: bench-secret-for-loopback-only
idp_scopes: [openid, email, profile]
jwt_claims_headers: [email, groups]""")
if scheme == "https":
    print(f"certificate_file: {cert}\ncertificate_key_file: {key}")
else:
    print("insecure_server: true")
print("routes:\n" + "\n".join(routes))
