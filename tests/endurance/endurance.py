"""Three processes on a shared store under load, while everything that can fail does: counts of requests by outcome.

  tests/endurance/run redis|valkey|postgres [seconds of each phase]

The primary of the store is killed (and its replica takes over), a process is killed and started again, the provider hangs
for a minute, tokens expire all the time. Fails when anybody is wrongly let in, when a session is lost that was acknowledged
more than a second before a kill (with PostgreSQL, which replicates synchronously, any), or when it does not recover. Excused
are sessions whose refresh token was carried to the provider in the moment in which it hung, or in which a process was killed:
it was spent, nobody heard what for, and the provider takes the next attempt for theft. It counts those itself.
"""
import asyncio, collections, http.cookies, json, os, random, signal, statistics, subprocess, sys, tempfile, time
from urllib.parse import urlsplit

from stores import Postgres, Redis, Valkey, free_port, listens, until

HERE = os.path.dirname(os.path.abspath(__file__))
BINARY = os.environ.get("PORTCULLIS", os.path.join(HERE, "../../target/release/portcullis"))
RATE, SESSIONS, LIFETIME = 500, 200, 20
HOST, AUTH = "app.localhost", "authenticate.localhost"


async def exchange(port, host, target, cookies="", limit=20):
    """One request on a connection of its own: status, headers, body."""
    reader, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), limit)
    try:
        line = f"Cookie: {cookies}\r\n" if cookies else ""
        writer.write(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nAccept: text/html\r\n{line}Connection: close\r\n\r\n".encode())
        data = await asyncio.wait_for(reader.read(), limit)
    finally:
        writer.close()
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if not lines[0].startswith("HTTP/1.1 "):
        raise ConnectionError("no answer")
    headers = [tuple(part.strip() for part in line.split(":", 1)) for line in lines[1:]]
    return int(lines[0].split()[1]), headers, body.decode("latin-1")


class Person:
    """A browser that signs in: cookies by host."""

    def __init__(self, run):
        self.run, self.jar, self.email = run, collections.defaultdict(dict), None
        self.acknowledged = self.ended = None

    def line(self, host):
        return "; ".join(f"{name}={value}" for name, value in self.jar[host].items())

    async def open(self, url, port):
        for _ in range(12):
            parts = urlsplit(url)
            to = parts.port if parts.hostname == "127.0.0.1" else port
            target = parts.path + (f"?{parts.query}" if parts.query else "")
            status, headers, body = await exchange(to, parts.hostname, target, self.line(parts.hostname))
            for name, value in headers:
                if name.lower() == "set-cookie":
                    key, _, rest = value.partition("=")
                    kept, _, attributes = rest.partition(";")
                    if "Max-Age=0" in attributes:
                        self.jar[parts.hostname].pop(key, None)
                    else:
                        self.jar[parts.hostname][key] = kept
            to = next((value for name, value in headers if name.lower() == "location"), None)
            if not to or not 300 <= status < 400:
                return status, body
            url = to if "://" in to else f"http://{parts.hostname}{to}"
        return 0, "too many redirects"

    async def sign_in(self):
        status, body = await self.open(f"http://{HOST}/", self.run.port())
        if status == 200:
            self.email, self.acknowledged = body, time.monotonic()
        return status

    async def sign_out(self):
        status, _ = await self.open(f"http://{HOST}/.pomerium/sign_out", self.run.port())
        return status


class Run:
    def __init__(self, kind, phase):
        self.kind, self.phase = kind, phase
        self.store = {"redis": Redis, "valkey": Valkey, "postgres": Postgres}[kind]()
        self.directory = tempfile.mkdtemp()
        self.counts, self.wrong, self.phases = collections.Counter(), [], {}
        self.alive, self.gone = [], []
        self.kills, self.name, self.marks = [], "warm-up", []

    def port(self):
        return random.choice([port for port, child in self.processes if child.poll() is None])

    async def upstream(self):
        async def serve(reader, writer):
            try:
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                    email = next((line.split(": ", 1)[1] for line in head.split("\r\n")
                                  if line.lower().startswith("x-pomerium-claim-email:")), "")
                    writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(email)}\r\n\r\n{email}".encode())
                    await writer.drain()
            except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
                pass
            finally:
                writer.close()
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        return server.sockets[0].getsockname()[1]

    def start_process(self, number, port):
        state = os.path.join(self.directory, str(number))
        os.makedirs(state, exist_ok=True)
        path = os.path.join(state, "config.json")
        config = {
            "address": f"127.0.0.1:{port}", "health_check_addr": "127.0.0.1:0", "insecure_server": True, "workers": 1,
            "state_dir": state, "authenticate_service_url": f"http://{AUTH}", "idp_provider_url": self.issuer,
            "idp_client_id": "bench", "idp_client_secret": "the-secret-of-the-tests", "jwt_claims_headers": ["email"],
            "shared_secret": "mPcUJzvJqnuzEGVTs0a2wF4Ds0GEMbpoQYFBdhfWGAU=", **self.store.settings,
            "routes": [{"from": f"http://{HOST}", "to": f"http://127.0.0.1:{self.app}", "pass_identity_headers": True,
                        "allow_any_authenticated_user": True}],
        }
        json.dump(config, open(path, "w"))
        log = open(os.path.join(state, "log"), "a")
        child = subprocess.Popen([BINARY, "run", "-c", path], stderr=log, env={"PATH": os.environ["PATH"]})
        until(lambda: listens(port) or child.poll() is not None)
        assert child.poll() is None, open(log.name).read()[-3000:]
        return child

    async def one(self):
        """One request of the load; what it may be answered depends on who sends it."""
        kind, person = "without a session", None
        dice = random.random()
        now = time.monotonic()
        settled = [one for one in self.gone if one.ended and now - one.ended > 1]
        if dice < 0.8 and self.alive:
            kind, person = "with a session", random.choice(self.alive)
        elif dice < 0.9 and settled:
            kind, person = "with an ended session", random.choice(settled)
        cookies = person.line(HOST) if person else ""
        sent_while_alive = person is not None and person.ended is None
        try:
            status, headers, body = await exchange(self.port(), HOST, "/x", cookies)
            outcome = str(status)
            let_in = status == 200 and not any(name.lower() == "location" for name, _ in headers)
            if let_in and (not sent_while_alive or body != person.email):
                self.wrong.append((self.name, kind, body, person and person.email))
        except (OSError, asyncio.TimeoutError, ConnectionError) as error:
            outcome = "no answer" if isinstance(error, asyncio.TimeoutError) else "connection refused or broken"
        self.counts[self.name, kind, outcome] += 1

    async def load(self):
        due, tasks = time.monotonic(), set()
        while not self.over:
            due += 1 / RATE
            task = asyncio.create_task(self.one())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await asyncio.sleep(max(0, due - time.monotonic()))
        await asyncio.gather(*tasks)

    async def churn(self):
        """People come and go: two sign-ins and one sign-out a second."""
        while not self.over:
            await asyncio.sleep(0.5)
            person = Person(self)
            try:
                if await person.sign_in() == 200:
                    self.alive.append(person)
                    self.counts[self.name, "sign-in", "done"] += 1
                else:
                    self.counts[self.name, "sign-in", "not now"] += 1
            except (OSError, asyncio.TimeoutError, ConnectionError):
                self.counts[self.name, "sign-in", "not now"] += 1
            if random.random() < 0.5 and self.store_is_up and len(self.alive) > SESSIONS // 2:
                leaving = self.alive.pop(random.randrange(len(self.alive)))
                try:
                    await leaving.sign_out()
                    leaving.ended = time.monotonic()
                    self.gone.append(leaving)
                except (OSError, asyncio.TimeoutError, ConnectionError):
                    pass

    async def is_up(self):
        """Until somebody new can sign in everywhere."""
        began = time.monotonic()
        while True:
            person = Person(self)
            try:
                if await person.sign_in() == 200:
                    statuses = [(await exchange(port, HOST, "/x", person.line(HOST)))[0] for port, _ in self.processes]
                    if statuses == [200] * len(statuses):
                        return time.monotonic() - began
            except (OSError, asyncio.TimeoutError, ConnectionError):
                pass
            assert time.monotonic() - began < 90, "it does not recover"
            await asyncio.sleep(0.1)

    async def main(self):
        key = os.path.join(self.directory, "key.pem")
        subprocess.run(["openssl", "genrsa", "-traditional", "-out", key, "2048"], check=True, capture_output=True)
        idp_port = free_port()
        self.issuer = f"http://127.0.0.1:{idp_port}"
        env = {**os.environ, "IDP_LIFETIME": str(LIFETIME), "IDP_EACH": "1", "IDP_ROTATE": "1"}
        idp = subprocess.Popen([sys.executable, os.path.join(HERE, "../bench/idp.py"), str(idp_port), key], env=env)
        until(lambda: listens(idp_port))
        self.app = await self.upstream()
        ports = [free_port() for _ in range(3)]
        self.processes = [(port, self.start_process(number, port)) for number, port in enumerate(ports)]
        self.over, self.store_is_up = False, True
        try:
            await self.is_up()
            while len(self.alive) < SESSIONS:
                some = [Person(self) for _ in range(10)]
                for person, status in zip(some, await asyncio.gather(*(one.sign_in() for one in some))):
                    if status == 200:
                        self.alive.append(person)
            await self.faults(idp)
        finally:
            self.over = True
            for _, child in self.processes:
                child.kill()
            idp.send_signal(signal.SIGCONT)
            idp.kill()
            self.store.stop()

    async def faults(self, idp):
        workers = [asyncio.create_task(self.load()), asyncio.create_task(self.churn())]

        async def during(name, seconds):
            self.name = name
            await asyncio.sleep(seconds)
        await during("all well, tokens expire", self.phase + LIFETIME)
        self.name, self.store_is_up = "the store's primary is killed", False
        self.kills.append(time.monotonic())
        self.store.kill_primary()
        await asyncio.sleep(1)
        await asyncio.to_thread(self.store.promote)
        took = await self.is_up()
        print(f"the store works again {took + 1:.1f} s after its primary was killed")
        self.store_is_up = True
        await during("after the failover", self.phase)
        self.name = "a process is killed"
        self.kills.append(time.monotonic())
        port, child = self.processes[0]
        child.kill()
        child.wait()
        await asyncio.sleep(self.phase / 2)
        self.processes[0] = (port, await asyncio.to_thread(self.start_process, 0, port))
        await during("the process is back", self.phase)
        self.before_hang = await self.refreshes()
        idp.send_signal(signal.SIGSTOP)
        await during("the provider hangs for a minute", 60)
        idp.send_signal(signal.SIGCONT)
        await during("the provider is back", self.phase + 20)
        self.over = True
        await asyncio.gather(*workers)
        await self.judge()

    async def refreshes(self):
        return json.loads((await exchange(urlsplit(self.issuer).port, "127.0.0.1", "/reuses"))[2])

    async def judge(self):
        lost, turn = [], asyncio.Semaphore(20)

        async def look(person):
            async with turn:
                for _ in range(3):
                    status, _, body = await exchange(self.port(), HOST, "/x", person.line(HOST))
                    if status == 200 and body == person.email:
                        return
                    await asyncio.sleep(1)
                near = any(-0.2 < kill - person.acknowledged < 1 for kill in self.kills)
                lost.append((person.email, status, near))
        await asyncio.gather(*(look(person) for person in self.alive))
        reuses = await self.refreshes()
        total = sum(count for (_, kind, _), count in self.counts.items() if kind != "sign-in")
        print(f"\n{self.kind}: {total} requests, {RATE} a second, {len(self.alive)} sessions alive at the end")
        for (phase, kind, outcome), count in self.counts.items():
            print(f"  {phase:34} {kind:24} {outcome:30} {count:7}")
        print(f"wrongly let in: {len(self.wrong)}")
        print(f"sessions lost: {len(lost)}, of which acknowledged within a second before a kill: {sum(near for *_, near in lost)}")
        print(f"refreshes: {reuses['refreshed']}; of tokens that had been spent unheard: {self.before_hang['reused']} before the "
              f"provider hung, {reuses['reused'] - self.before_hang['reused']} because it did")
        print(f"in the store, for each session with its handles: {self.store.size(len(self.alive)) / 1024:.1f} KiB")
        excused = reuses["reused"] + (0 if self.kind == "postgres" else sum(near for *_, near in lost))
        assert not self.wrong, self.wrong[:5]
        assert len(lost) <= excused, lost


if __name__ == "__main__":
    asyncio.run(Run(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 20).main())
