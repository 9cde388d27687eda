"""The table of peers. Each function gets an Opt, writes its config below WORK, starts the proxy and returns Started
(process, port, cookie function). To add one: write a function, decorate it with @peer(name, caps).
By hand: python3 peers.py NAME [tls] [hosts=N|paths=N]  -> prints port, pid and Cookie header, runs until Ctrl-C."""
import json, os, shutil, subprocess, sys, time
from dataclasses import dataclass, field
from typing import Callable, Optional
import lib
from lib import WORK, WORKERS, free_port, peer_dir, spawn, wait_port, write

ENVOY = os.environ.get("ENVOY") or shutil.which("envoy") or "envoy"


@dataclass
class Opt:
    tls: bool = False
    workers: int = WORKERS
    hosts: int = 0            # this many extra virtual hosts r0.localhost..r(N-1).localhost
    paths: int = 0            # this many extra path routes /r0/..
    socket: int = 0           # the port of an upstream that changes to WebSocket, in the place of the usual one
    wrap: Optional[list] = None   # e.g. valgrind
    cpu: Optional[str] = lib.CPU_PROXY


@dataclass
class Started:
    proc: object
    port: int
    startup: float
    cookie: Callable[[], Optional[str]] = lambda: None
    tls: bool = False

    @property
    def base(self):
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"


@dataclass
class Backend:
    up: int
    idp: int
    cert: str
    key: str
    proc: object


PEERS = {}


def peer(name, *caps):
    def deco(fn):
        PEERS[name] = (fn, set(caps))
        return fn
    return deco


BE: Backend = None


def backend():
    """Upstream nginx (1 worker, CPU 1): / = 1 KiB, /64k, /1m, /authz = 200 if a cookie sid=ok else 401; plus the IdP."""
    global BE
    if BE:
        return BE
    d = peer_dir("_backend")
    for n, size in (("64k", 65536), ("1m", 1 << 20)):
        write(f"{d}/www/{n}", "x" * size)
    subprocess.run(["chmod", "-R", "a+rX", WORK], check=False)
    cert, key, rsa = f"{d}/cert.pem", f"{d}/key.pem", f"{d}/rsa.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
                    "-subj", "/CN=bench.test", "-addext", "subjectAltName=DNS:bench.test,IP:127.0.0.1", "-keyout", key,
                    "-out", cert], check=True, capture_output=True)
    subprocess.run(["openssl", "genrsa", "-out", rsa, "2048"], check=True, capture_output=True)
    os.chmod(key, 0o644)
    up, idp = free_port(), free_port()
    conf = write(f"{d}/nginx.conf", f"""daemon off; worker_processes {1 if lib.PIN else 2}; pid {d}/pid; error_log {d}/error.log;
worker_rlimit_nofile 60000; user root;
events {{ worker_connections 30000; }}
http {{ access_log off; underscores_in_headers on; sendfile on; tcp_nopush on; keepalive_timeout 600s; keepalive_requests 1000000000; open_file_cache max=100;
client_body_temp_path {d}/t1; proxy_temp_path {d}/t2; fastcgi_temp_path {d}/t3; uwsgi_temp_path {d}/t4; scgi_temp_path {d}/t5;
server {{ listen 127.0.0.1:{up} backlog=4096; root {d}/www; default_type text/plain;
  location / {{ return 200 "{'x' * 1024}"; }}
  location = /64k {{ }}
  # Read to its end before it is answered: wrk takes an early answer for the end of its own request.
  client_max_body_size 0;
  location = /upload {{ client_body_buffer_size 16m; proxy_pass http://127.0.0.1:{up}/; }}
  location = /1m {{ }}
  location = /authz {{ if ($cookie_sid != ok) {{ return 401; }} add_header X-User alice@example.com; return 200 ""; }}
  location = /echo {{ return 200 "user=$http_x_user email=$http_x_user_email oidc=$http_oidc_claim_email auth=$http_authorization\\n"; }}
}} }}
""")
    p = spawn(["nginx", "-c", conf, "-p", d, "-e", f"{d}/error.log"], f"{d}/log", cpu=lib.CPU_LOAD)
    wait_port(p, up)
    q = spawn([sys.executable, os.path.join(lib.HERE, "idp.py"), str(idp), rsa], f"{d}/idp.log", cpu=lib.CPU_LOAD)
    wait_port(q, idp)
    BE = Backend(up, idp, cert, key, p)
    return BE


def fin(d, proc, port, o, cookie=None, tls=None):
    tls = o.tls if tls is None else tls
    t = wait_port(proc, port, tls=tls, timeout=180 if o.wrap else 60)
    s = Started(proc, port, t, tls=tls)
    if cookie == "login":
        def do():
            from login import login
            return login(s.base)
        s.cookie = do
    elif cookie:
        s.cookie = lambda: cookie
    return s


@peer("direct", "plain", "direct")
def direct(o):
    b = backend()
    return Started(b.proc, b.up, 0.0)


# ---------------------------------------------------------------- nginx
def _nginx(name, o, auth=False):
    b, d, port = backend(), peer_dir(name), free_port()
    ssl = f"ssl_certificate {b.cert}; ssl_certificate_key {b.key}; ssl_protocols TLSv1.3; ssl_session_tickets off;" if o.tls else ""
    listen = f"127.0.0.1:{port}" + (" ssl http2" if o.tls else "")
    change = '$http_connection' if o.socket else '""'
    keep = f'proxy_set_header Connection {change}; proxy_set_header Upgrade $http_upgrade; proxy_set_header Host $host; '   # a location with its own headers does not inherit these
    pp = (f"auth_request /_authz; auth_request_set $u $upstream_http_x_user; {keep} proxy_set_header X-User $u; " if auth else "") + \
        "proxy_pass http://up;"
    loc = f"location / {{ {pp} }}"
    if auth:
        loc += f" location = /_authz {{ internal; proxy_pass http://up/authz; proxy_pass_request_body off; {keep} proxy_set_header Content-Length \"\"; }}"
    extra = "".join(f"server {{ listen {listen}; server_name r{i}.localhost; {ssl} {loc} }}\n" for i in range(o.hosts))
    ploc = "".join(f"location /r{i}/ {{ {pp} }}\n" for i in range(o.paths))
    conf = write(f"{d}/nginx.conf", f"""daemon off; worker_processes {o.workers}; pid {d}/pid; error_log {d}/error.log; user root;
worker_rlimit_nofile 60000;
events {{ worker_connections 30000; }}
http {{ access_log off; keepalive_timeout 600s; keepalive_requests 1000000000; server_names_hash_max_size 8192; server_names_hash_bucket_size 128;
client_body_temp_path {d}/t1; proxy_temp_path {d}/t2; fastcgi_temp_path {d}/t3; uwsgi_temp_path {d}/t4; scgi_temp_path {d}/t5;
proxy_http_version 1.1; {keep if o.socket else 'proxy_set_header Connection ""; proxy_set_header Host $host;'} proxy_max_temp_file_size 0;
proxy_request_buffering off; client_max_body_size 0;
upstream up {{ server 127.0.0.1:{o.socket or b.up}; keepalive 256; keepalive_requests 1000000000; }}
server {{ listen {listen} default_server backlog=4096; server_name bench.test; {ssl}
{loc}
{ploc} }}
{extra} }}
""")
    p = spawn(["nginx", "-c", conf, "-p", d, "-e", f"{d}/error.log"], f"{d}/log", cpu=o.cpu, wrap=o.wrap)
    return fin(d, p, port, o, cookie="sid=ok" if auth else None)


@peer("nginx", "plain", "tls", "h2", "hosts", "paths", "sockets", "workers")
def nginx(o):
    return _nginx("nginx", o)


@peer("nginx_auth_request", "auth", "tls", "h2")
def nginx_auth_request(o):
    return _nginx("nginx_auth_request", o, auth=True)


# ---------------------------------------------------------------- haproxy
@peer("haproxy", "plain", "tls", "h2")
def haproxy(o):
    b, d, port = backend(), peer_dir("haproxy"), free_port()
    bind = f"bind 127.0.0.1:{port} backlog 4096"
    if o.tls:
        write(f"{d}/pem", open(b.cert).read() + open(b.key).read())
        bind += f" ssl crt {d}/pem alpn h2,http/1.1 ssl-min-ver TLSv1.3 no-tls-tickets"
    conf = write(f"{d}/haproxy.cfg", f"""global
  maxconn {(lib.NOFILE_NOW - 200) // 2}
  nbthread {o.workers}
  tune.ssl.cachesize 0
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  timeout http-keep-alive 600s
  http-reuse always
frontend f
  {bind}
  default_backend b
backend b
  server s 127.0.0.1:{b.up} pool-max-conn 512
""")
    p = spawn(["haproxy", "-db", "-f", conf], f"{d}/log", cpu=o.cpu, wrap=o.wrap)
    return fin(d, p, port, o)


# ---------------------------------------------------------------- envoy
def _cluster(name, port):
    return {"name": name, "type": "STATIC", "connect_timeout": "5s",
            "circuit_breakers": {"thresholds": [{"max_connections": 20000, "max_pending_requests": 20000, "max_requests": 20000}]},
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {
                "socket_address": {"address": "127.0.0.1", "port_value": port}}}}]}]}}


T = "type.googleapis.com/"


def _envoy(name, o, filters=(), secrets=(), cookie=None, one=False):
    b, d, port = backend(), peer_dir(name), free_port()
    rt = lambda prefix, cl: {"match": {"prefix": prefix}, "route": {"cluster": "up" if one else cl, "timeout": "30s"}}
    vhosts = [{"name": "all", "domains": ["*"], "routes": [rt(f"/r{i}/", f"c{i}") for i in range(o.paths)] + [rt("/", "up")]}]
    vhosts += [{"name": f"v{i}", "domains": [f"r{i}.localhost"], "routes": [rt("/", f"c{i}")]} for i in range(o.hosts)]
    hcm = {"@type": T + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager", "stat_prefix": "in",
           "route_config": {"name": "r", "virtual_hosts": vhosts}, "generate_request_id": False,
           "http_filters": [*filters, {"name": "envoy.filters.http.router", "typed_config": {
               "@type": T + "envoy.extensions.filters.http.router.v3.Router", "suppress_envoy_headers": True}}]}
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": hcm}]}
    if o.tls:
        chain["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": T + "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", "disable_stateless_session_resumption": True,
            "disable_stateful_session_resumption": True,
            "common_tls_context": {"alpn_protocols": ["h2", "http/1.1"], "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
                                   "tls_certificates": [{"certificate_chain": {"filename": b.cert}, "private_key": {"filename": b.key}}]}}}
    conf = {"static_resources": {
        "listeners": [{"name": "l", "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                       "ignore_global_conn_limit": True, "filter_chains": [chain]}],
        "clusters": [_cluster("up", b.up), _cluster("idp", b.idp)] + [_cluster(f"c{i}", b.up) for i in range(0 if one else max(o.hosts, o.paths))],
        "secrets": list(secrets)}}
    c = write(f"{d}/envoy.json", json.dumps(conf, indent=1))
    p = spawn([ENVOY, "-c", c, "--concurrency", str(o.workers), "--disable-hot-restart", "-l", "warn"], f"{d}/log", cpu=o.cpu, wrap=o.wrap)
    return fin(d, p, port, o, cookie=cookie)


def _oauth2(o):
    b = backend()
    f = {"name": "envoy.filters.http.oauth2", "typed_config": {
        "@type": T + "envoy.extensions.filters.http.oauth2.v3.OAuth2", "config": {
            "token_endpoint": {"cluster": "idp", "uri": f"http://127.0.0.1:{b.idp}/token", "timeout": "5s"},
            "authorization_endpoint": f"http://127.0.0.1:{b.idp}/authorize",
            "redirect_uri": ("https" if o.tls else "http") + "://%REQ(:authority)%/callback",
            "redirect_path_matcher": {"path": {"exact": "/callback"}}, "signout_path": {"path": {"exact": "/signout"}},
            "forward_bearer_token": True, "use_refresh_token": True, "auth_scopes": ["openid", "email"],
            "credentials": {"client_id": "bench", "token_secret": {"name": "token"}, "hmac_secret": {"name": "hmac"}}}}}
    sec = [{"name": n, "generic_secret": {"secret": {"inline_string": v}}} for n, v in
           (("token", "client-secret"), ("hmac", "0123456789abcdef0123456789abcdef"))]
    return f, sec


def _jwt_rbac(cache):
    b = backend()
    jwks = lib.raw_get(b.idp, "/jwks", timeout=5)[2].decode()
    prov = {"issuer": f"http://127.0.0.1:{b.idp}", "audiences": ["bench"], "local_jwks": {"inline_string": jwks}, "forward": False,
            "payload_in_metadata": "jwt", "claim_to_headers": [{"header_name": "x-user-email", "claim_name": "email"}]}
    if cache:
        prov["jwt_cache_config"] = {"jwt_cache_size": 1000}
    return [{"name": "envoy.filters.http.jwt_authn", "typed_config": {
        "@type": T + "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication", "providers": {"idp": prov},
        "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "idp"}}]}},
        {"name": "envoy.filters.http.rbac", "typed_config": {
            "@type": T + "envoy.extensions.filters.http.rbac.v3.RBAC", "rules": {"action": "ALLOW", "policies": {"p": {
                "permissions": [{"any": True}], "principals": [{"sourced_metadata": {"metadata_matcher": {
                    "filter": "envoy.filters.http.jwt_authn", "path": [{"key": "jwt"}, {"key": "email"}],
                    "value": {"string_match": {"suffix": "@example.com"}}}}}]}}}}}]


@peer("envoy", "plain", "tls", "h2", "hosts", "paths")
def envoy(o):
    return _envoy("envoy", o)


@peer("envoy_1cluster", "hosts", "paths")     # all routes share one upstream cluster; "envoy" has one cluster per route
def envoy_1cluster(o):
    return _envoy("envoy_1cluster", o, one=True)


@peer("envoy_oauth2", "auth", "tls", "h2")
def envoy_oauth2(o):
    f, sec = _oauth2(o)
    return _envoy("envoy_oauth2", o, [f], sec, cookie="login")


@peer("envoy_oauth2_jwt_rbac", "auth", "tls", "h2")
def envoy_oauth2_jwt_rbac(o):
    f, sec = _oauth2(o)
    return _envoy("envoy_oauth2_jwt_rbac", o, [f, *_jwt_rbac(False)], sec, cookie="login")


@peer("envoy_oauth2_jwtcache_rbac", "auth", "tls", "h2")
def envoy_oauth2_jwtcache_rbac(o):
    f, sec = _oauth2(o)
    return _envoy("envoy_oauth2_jwtcache_rbac", o, [f, *_jwt_rbac(True)], sec, cookie="login")


@peer("envoy_ext_authz", "auth", "tls", "h2")
def envoy_ext_authz(o):
    b = backend()
    f = {"name": "envoy.filters.http.ext_authz", "typed_config": {
        "@type": T + "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
        "allowed_headers": {"patterns": [{"exact": "cookie"}]},
        "http_service": {"server_uri": {"uri": f"http://127.0.0.1:{b.up}", "cluster": "up", "timeout": "5s"}, "path_override": "/authz",
                         "authorization_response": {"allowed_upstream_headers": {"patterns": [{"exact": "x-user"}]}}}}}
    return _envoy("envoy_ext_authz", o, [f], cookie="sid=ok")


# ---------------------------------------------------------------- ours
def _ours(kind, o):
    """OURS_CMD: command line, with @CONFIG@ where the config file goes; the configuration is what `configuration.py` prints.
    Logs (access and decision records) go to a file, as in production: they are part of what is measured."""
    b, d, port = backend(), peer_dir("ours_" + kind), free_port()
    made = subprocess.run([sys.executable, os.path.join(lib.HERE, "configuration.py"), kind, str(port), f"127.0.0.1:{o.socket or b.up}",
                           f"http://127.0.0.1:{b.idp}", b.cert, b.key, d, str(o.workers), "https" if o.tls else "http",
                           str(o.hosts or 0), str(o.paths or 0)], capture_output=True, text=True, check=True).stdout
    conf = write(f"{d}/config.yaml", made)
    default = os.path.join(lib.HERE, "../../target/release/portcullis") + " run -c @CONFIG@"
    cmd = [a.replace("@CONFIG@", conf) for a in os.environ.get("OURS_CMD", default).split()]
    p = spawn(cmd, f"{d}/log", cpu=o.cpu, wrap=o.wrap)
    return fin(d, p, port, o, cookie="login" if kind == "auth" else None)


peer("ours", "plain", "tls", "h2", "hosts", "paths", "sockets", "workers")(lambda o: _ours("plain", o))
peer("ours_auth", "auth", "tls", "h2", "hosts", "paths", "sockets", "workers")(lambda o: _ours("auth", o))


def start(name, o=None):
    return PEERS[name][0](o or Opt())


def check(name, s):
    """Correctness gate: 200 with a session, the identity reaches the upstream, and no 200 without a session."""
    from login import fetch
    caps = PEERS[name][1]
    ck = s.cookie()
    h = {"Cookie": ck} if ck else {}
    r, body = fetch(s.base + "/", headers=h)
    assert r.status == 200 and len(body) == 1024, (name, r.status, len(body))
    if "auth" in caps:
        r, _ = fetch(s.base + "/")
        assert r.status in (302, 303, 307, 401, 403), (name, "no session", r.status)
        r, body = fetch(s.base + "/echo", headers=h)
        return ck, body.decode().strip()
    return ck, ""


if __name__ == "__main__":
    args = sys.argv[1:]
    if not args:
        sys.exit(__doc__ + "\npeers: " + " ".join(PEERS))
    o = Opt(tls="tls" in args, **{a.split("=")[0]: int(a.split("=")[1]) for a in args if "=" in a})
    s = start(args[0], o)
    ck, echo = check(args[0], s)
    print(f"port={s.port} pid={s.proc.pid} url={s.base}/ startup={s.startup:.3f}s")
    print(f"Cookie: {ck}" if ck else "no cookie")
    print(f"cookie bytes={len(ck or '')} upstream saw: {echo[:300]}", flush=True)
    if "once" not in args:
        time.sleep(1e6)
