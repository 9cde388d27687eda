"""What a signed-in session takes while it is in use: many people sign in, the server is started again, and each asks once,
so that its memory holds what the cache holds and nothing of the signing in. memory.py [COUNT]"""
import sys, time
import lib, peers
from login import fetch, login
from peers import Opt


def growth(count):
    s = peers.start("ours_auth", Opt())
    cookies = [login(s.base) for _ in range(count)]
    s = restarted(s)
    # Pools, buffers and the store's own cache are there before the first reading.
    for cookie in cookies[:count // 4]:
        ask(s, cookie)
    time.sleep(1)
    before, _ = lib.mem_kb(s.proc.pid)
    for cookie in cookies[count // 4:]:
        ask(s, cookie)
    time.sleep(1)
    after, _ = lib.mem_kb(s.proc.pid)
    lib.stop(s.proc)
    return {"sessions": count - count // 4, "rss0_kb": before, "rss1_kb": after, "kb_per_session": (after - before) / (count - count // 4)}


def restarted(s):
    lib.stop(s.proc)
    again = lib.spawn(s.proc.args, s.proc.log, cpu=None)   # its arguments pin it already
    lib.wait_port(again, s.port)
    s.proc = again
    return s


def ask(s, cookie):
    r, _ = fetch(s.base + "/", headers={"Cookie": cookie})
    assert r.status == 200, r.status


if __name__ == "__main__":
    print(growth(int(sys.argv[1]) if len(sys.argv) > 1 else 2000))
