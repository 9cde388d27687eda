"""Run scenarios: bench.py SCENARIO...   (p01 p01big p2 p3 p3hs p4 p4a p5 p6 p7 p8 or all; `compare` explains them)
Env: WORK PIN WORKERS ROUNDS DUR WARM PEERS (comma list: only these) ENVOY OURS_CMD"""
import json, os, subprocess, sys, time, traceback
import lib, peers
from lib import PIN, record
from peers import Opt, PEERS, backend

ROUNDS = int(os.environ.get("ROUNDS", "3"))
DUR = int(os.environ.get("DUR", "10"))
WARM = int(os.environ.get("WARM", "3"))
SHORT = int(os.environ.get("SHORT", "4"))      # seconds for the secondary scenarios
IDLE = int(os.environ.get("IDLE", "9000"))
ONLY = [p for p in os.environ.get("PEERS", "").split(",") if p]


def pick(*caps, extra=()):
    n = [p for p, (_, c) in PEERS.items() if (set(caps) & c or p in extra)]
    return [p for p in n if not ONLY or p in ONLY]


def up(names, scenario, **kw):
    out = {}
    for n in names:
        try:
            s = peers.start(n, Opt(**kw))
            peers.check(n, s)
            out[n] = s
        except Exception as e:
            record({"scenario": scenario, "peer": n, "error": repr(e)[:300]})
            traceback.print_exc()
    return out


def down(running):
    for n, s in running.items():
        if s.proc is not backend().proc:
            lib.stop(s.proc)


QUIET_WAIT = float(os.environ.get("QUIET_WAIT", "30"))      # at most this long before one measurement ...
QUIET_BUDGET = [float(os.environ.get("QUIET_BUDGET", "600"))]  # ... and in total, waiting for other work on this machine to pause
RETRIES = int(os.environ.get("RETRIES", "1"))               # a measurement with more than FOREIGN of other CPU use is repeated
FOREIGN = 0.06


def stat():
    f = [int(x) for x in open("/proc/stat").readline().split()[1:9]]
    # user+nice+system+irq+softirq (a process's own time contains the softirq time that ran on top of it), steal: seconds over all CPUs
    return (f[0] + f[1] + f[2] + f[5] + f[6]) / 100, f[7] / 100


def own():
    """CPU seconds of this script, its live children and its ended children."""
    import resource
    r = resource.getrusage(resource.RUSAGE_CHILDREN)
    return lib.cpu_ns(os.getpid()) / 1e9 + r.ru_utime + r.ru_stime


def quiet():
    t0 = time.time()
    while time.time() - t0 < min(QUIET_WAIT, QUIET_BUDGET[0]):
        a, o, t = stat()[0], own(), time.perf_counter()
        time.sleep(0.4)
        if (stat()[0] - a - (own() - o)) / (time.perf_counter() - t) < 0.12:
            break
        time.sleep(0.3)
    QUIET_BUDGET[0] -= time.time() - t0


def timed(s, load, secs_hint, extra):
    best = None
    for _ in range(RETRIES + 1):
        quiet()
        a, t, (busy, st), o = lib.cpu_ns(s.proc.pid), time.perf_counter(), stat(), own()
        r = load()
        dt, cpu = time.perf_counter() - t, lib.cpu_ns(s.proc.pid) - a
        b2, st2 = stat()
        n = os.cpu_count()
        r["foreign"] = max(0.0, (b2 - busy - (own() - o)) / dt / n)   # CPU used by others, as a part of the machine
        r["steal"] = (st2 - st) / dt / n
        r["rss_kb"], r["pss_kb"] = lib.mem_kb(s.proc.pid)
        r["cpu_us_per_req"] = cpu / 1000 / r["requests"] if r.get("requests") else 0.0
        r["proxy_cpu"] = cpu / 1e9 / dt
        if best is None or r["foreign"] < best["foreign"]:
            best = r
        if r["foreign"] <= FOREIGN or QUIET_BUDGET[0] <= 0:
            break
    return {**best, **extra}


def interleave(scenario, running, load, variant="", rounds=ROUNDS, warm=True, dur=None):
    """load(started, headers, secs) -> result"""
    dur = dur or DUR
    for rnd in range(rounds):
        for n, s in running.items():
            try:
                ck = s.cookie()
                h = [f"Cookie: {ck}"] if ck else []
                if warm:
                    load(s, h, WARM if rnd == 0 else 1)
                record(timed(s, lambda: load(s, h, dur), dur, {"scenario": scenario, "variant": variant, "peer": n, "round": rnd}))
            except Exception as e:
                record({"scenario": scenario, "variant": variant, "peer": n, "round": rnd, "error": repr(e)[:300]})


def wrk_load(path="/", conns=64, threads=2, more=()):
    return lambda s, h, secs: lib.wrk(s.base + path, secs, conns, threads, [*h, *more])


def p01():   # P0+P1+P2 together, so that every round has all of them
    r = up(pick("plain", "auth"), "p01")
    interleave("p01", r, wrk_load(), "1k")
    down(r)


def p01big():
    r = up(pick("plain"), "p01big")
    for v in ("64k", "1m"):
        interleave("p01big", r, wrk_load("/" + v), v, dur=SHORT)
    down(r)


def p3():
    r = up(pick("tls", extra=()), "p3", tls=True)
    interleave("p3", r, wrk_load(), "tls-keepalive", dur=SHORT)
    down(r)


def p3hs():
    names = [n for n in pick("tls") if "auth" not in PEERS[n][1]]
    r = up(names, "p3hs", tls=True)
    interleave("p3hs", r, wrk_load(more=["Connection: close"]), "tls-handshake", dur=SHORT, warm=False)
    down(r)


def p4():
    r = up(pick("h2"), "p4", tls=True)
    for rnd in range(ROUNDS):
        for n, s in r.items():
            ck = s.cookie()
            h = [f"cookie: {ck}"] if ck else []
            lib.h2load(s.base + "/", 1, 0, headers=h)
            record(timed(s, lambda: lib.h2load(s.base + "/", SHORT, 0, headers=h), SHORT,
                         {"scenario": "p4", "variant": "h2-tls", "peer": n, "round": rnd}))
    down(r)


def p5():
    r = up(pick("plain", "auth"), "p5")
    for rnd in range(ROUNDS):
        for n, s in r.items():
            ck = s.cookie()
            args = lib.pin_args(lib.CPU_LOAD) + [sys.executable, os.path.join(lib.HERE, "latency.py"), f"127.0.0.1:{s.port}", "500", str(SHORT)]
            quiet()
            busy, o, t = stat()[0], own(), time.perf_counter()
            out = subprocess.run(args + ([ck] if ck else []), capture_output=True, text=True)
            foreign = max(0.0, (stat()[0] - busy - (own() - o)) / (time.perf_counter() - t) / os.cpu_count())
            try:
                record({"scenario": "p5", "variant": "500rps", "peer": n, "round": rnd, "foreign": foreign, **json.loads(out.stdout)})
            except ValueError:
                record({"scenario": "p5", "variant": "500rps", "peer": n, "round": rnd, "error": out.stderr[-300:]})
            h = [f"Cookie: {ck}"] if ck else []
            record(timed(s, lambda: lib.wrk(s.base + "/", 2, 1, 1, h), 2,
                         {"scenario": "p5", "variant": "wrk-c1", "peer": n, "round": rnd}))
    down(r)


def p6():
    for rnd in range(5):
        for n in pick("plain", "auth"):
            if n == "direct":
                continue
            s = peers.start(n, Opt())
            time.sleep(0.5)
            rss, pss = lib.mem_kb(s.proc.pid)
            record({"scenario": "p6", "variant": "start", "peer": n, "round": rnd, "startup_s": s.startup, "rss_kb": rss, "pss_kb": pss})
            lib.stop(s.proc)


def p7():
    import random
    for kind in ("hosts", "paths"):
        runs = {}
        for n in pick(kind):
            for cnt in (1, 1000):
                try:
                    s = peers.start(n, Opt(**{kind: cnt}))
                    runs[f"{n}/{cnt}"] = (s, cnt)
                    time.sleep(0.3)
                    rss, pss = lib.mem_kb(s.proc.pid)
                    record({"scenario": "p7", "variant": kind + "-start", "peer": f"{n}/{cnt}", "round": 0, "startup_s": s.startup, "rss_kb": rss, "pss_kb": pss})
                except Exception as e:
                    record({"scenario": "p7", "variant": kind, "peer": f"{n}/{cnt}", "error": repr(e)[:300]})
        for rnd in range(ROUNDS):
            for n, (s, cnt) in runs.items():
                go = lambda secs: lib.wrk(s.base + "/", secs, 64, 2, script=os.path.join(lib.HERE, "hosts.lua"), script_args=(kind, cnt))
                go(1)
                record(timed(s, lambda: go(SHORT), SHORT, {"scenario": "p7", "variant": kind, "peer": n, "round": rnd}))
        down({n: s for n, (s, _) in runs.items()})


def p8():
    for tls in (False, True):
        for n in [n for n in pick("plain") if n != "direct" and (not tls or "tls" in PEERS[n][1])]:
            s = None
            try:
                s = peers.start(n, Opt(tls=tls))
                lib.wrk(s.base + "/", 1, 16, 1)     # pools and caches exist before the first reading
                time.sleep(0.5)
                r0, q0 = lib.mem_kb(s.proc.pid)
                c = subprocess.Popen(lib.pin_args(lib.CPU_LOAD) + [sys.executable, os.path.join(lib.HERE, "idle.py"), str(s.port), str(IDLE), "tls" if tls else "plain"],
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                t = time.time()
                got = int(c.stdout.readline() or 0)
                took = time.time() - t
                time.sleep(1)
                r1, q1 = lib.mem_kb(s.proc.pid)
                a = lib.cpu_ns(s.proc.pid)
                time.sleep(2)
                idle_cpu = (lib.cpu_ns(s.proc.pid) - a) / 2e9
                c.stdin.close()
                c.wait(30)
                record({"scenario": "p8", "variant": "tls" if tls else "plain", "peer": n, "conns": got, "secs": took, "rss0_kb": r0, "rss1_kb": r1,
                        "kb_per_conn": (r1 - r0) / max(got, 1), "pss_per_conn": (q1 - q0) / max(got, 1), "idle_cpu": idle_cpu})
            except Exception as e:
                record({"scenario": "p8", "variant": "tls" if tls else "plain", "peer": n, "error": repr(e)[:300]})
            if s:
                lib.stop(s.proc)


def p9():
    r = up(pick("plain", extra=("ours_auth",)), "p9")
    r.pop("direct", None)
    for v, size, conns in (("64k", 65536, 64), ("10m", 10 << 20, 8)):
        load = lambda s, h, secs: lib.wrk(s.base, secs, conns, 2, h, script=os.path.join(lib.HERE, "upload.lua"), script_args=(size,))
        interleave("p9", r, load, v, dur=SHORT)
    down(r)


def p10():
    port = peers.free_port()
    script = os.path.join(lib.HERE, "echo.py")
    echo = peers.spawn([sys.executable, script, "serve", str(port)], os.path.join(lib.WORK, "echo.log"), cpu=lib.CPU_LOAD)
    time.sleep(0.5)
    r = {n: peers.start(n, Opt(socket=port)) for n in pick("sockets")}

    def load(s, cookie, secs):
        args = lib.pin_args(lib.CPU_LOAD) + [sys.executable, script, "load", str(s.port), "16", str(secs)]
        return json.loads(subprocess.run(args + ([cookie] if cookie else []), capture_output=True, text=True, check=True).stdout)
    interleave("p10", r, lambda s, h, secs: load(s, h[0].removeprefix("Cookie: ") if h else "", secs), "1k", dur=SHORT)
    down(r)
    lib.stop(echo)


def p11():
    from login import login
    s = peers.start("ours_auth", Opt())
    count = 300
    login(s.base)
    for rnd in range(ROUNDS):
        record(timed(s, lambda: {"requests": len([login(s.base) for _ in range(count)])}, 0,
                     {"scenario": "p11", "variant": "sign-in", "peer": "ours_auth", "round": rnd}))
    lib.stop(s.proc)


def p12():
    for workers in (1, 2):
        r = {n: peers.start(n, Opt(workers=workers, cpu=None)) for n in pick("workers")}
        interleave("p12", r, wrk_load(), f"{workers} workers", dur=SHORT)
        down(r)


ALL = {"p01": p01, "p01big": p01big, "p3": p3, "p3hs": p3hs, "p4": p4, "p5": p5, "p6": p6, "p7": p7, "p8": p8,
       "p9": p9, "p10": p10, "p11": p11, "p12": p12}
if __name__ == "__main__":
    for a in (list(ALL) if sys.argv[1:] == ["all"] else sys.argv[1:]):
        t = time.time()
        ALL[a]()
        print(f"# {a} done in {time.time() - t:.0f}s", flush=True)
    print("results:", os.path.join(lib.WORK, "results.jsonl"))
