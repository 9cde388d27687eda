"""Stores that fail over: Redis with a replica and a Sentinel, PostgreSQL with a synchronous standby."""
import glob, os, shutil, socket, subprocess, tempfile, time


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def until(holds, limit=30):
    end = time.monotonic() + limit
    while not holds():
        assert time.monotonic() < end, f"not within {limit} s"
        time.sleep(0.05)


def listens(port):
    with socket.socket() as one:
        one.settimeout(0.2)
        return one.connect_ex(("127.0.0.1", port)) == 0


class Redis:
    program = "redis-server"

    def __init__(self):
        self.directory = tempfile.mkdtemp()
        self.ports = [free_port(), free_port(), free_port()]
        primary, replica, sentinel = self.ports
        self.all = [
            self.start(f"port {primary}\nappendonly yes\nappendfsync always\nrepl-diskless-sync-delay 0\n", primary),
            self.start(f"port {replica}\nreplicaof 127.0.0.1 {primary}\nappendonly yes\n", replica),
        ]
        until(lambda: "connected" in self.cli(replica, "role"))
        self.all.append(self.start(
            f"port {sentinel}\nsentinel monitor mine 127.0.0.1 {primary} 1\nsentinel down-after-milliseconds mine 1000\n"
            "sentinel failover-timeout mine 5000\n", sentinel, "--sentinel"))
        # A sentinel hears of replicas every ten seconds.
        until(lambda: self.cli(sentinel, "sentinel", "replicas", "mine").strip() != "")
        self.settings = {"databroker_storage_type": "redis",
                         "databroker_storage_connection_string": f"redis+sentinel://127.0.0.1:{sentinel}/mine"}

    def start(self, text, port, *more):
        place = os.path.join(self.directory, str(port))
        os.mkdir(place)
        path = os.path.join(place, "redis.conf")
        open(path, "w").write(f"bind 127.0.0.1\ndir {place}\nsave \"\"\n" + text)
        child = subprocess.Popen([self.program, path, *more], stdout=subprocess.DEVNULL)
        until(lambda: listens(port))
        return child

    def cli(self, port, *words):
        return subprocess.run(["redis-cli", "-p", str(port), *words], capture_output=True, text=True).stdout

    def kill_primary(self):
        self.all[0].kill()
        self.all[0].wait()

    def promote(self):
        """The sentinel does it by itself."""

    def size(self, sessions):
        text = self.cli(self.ports[1], "info", "memory")
        used = next(line for line in text.splitlines() if line.startswith("used_memory_dataset:"))
        return int(used.split(":")[1]) / max(sessions, 1)

    def stop(self):
        for child in self.all:
            child.kill()
            child.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


class Valkey(Redis):
    program = "valkey-server"


class Postgres:
    def __init__(self):
        self.directory = tempfile.mkdtemp()
        os.chmod(self.directory, 0o777)
        self.ports = [free_port(), free_port()]
        self.programs = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
        primary, standby = self.ports
        self.run("initdb", "-U", "portcullis", "-A", "trust", "--no-sync", "-D", "one")
        self.all = [self.start("one", primary)]
        self.run("pg_basebackup", "-h", "127.0.0.1", "-p", str(primary), "-U", "portcullis", "-D", "two", "-R")
        self.all.append(self.start("two", standby))
        # From here on what is acknowledged is on both.
        self.psql(primary, "ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.psql(primary, "SELECT pg_reload_conf()")
        until(lambda: self.psql(primary, "SELECT sync_state FROM pg_stat_replication").strip() == "sync")
        self.settings = {
            "databroker_storage_type": "postgres",
            "databroker_storage_connection_string":
                f"postgres://portcullis@127.0.0.1:{primary},127.0.0.1:{standby}/postgres?sslmode=disable"}

    def command(self, name, *words):
        own = [os.path.join(self.programs, name), *words]
        return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *own] if os.getuid() == 0 else own

    def run(self, name, *words):
        done = subprocess.run(self.command(name, *words), cwd=self.directory, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, data, port):
        words = ["-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        child = subprocess.Popen(self.command("postgres", *words), cwd=self.directory,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: listens(port))
        until(lambda: self.psql(port, "SELECT 1").strip() == "1")
        return child

    def psql(self, port, statement):
        words = ["-At", "-h", "127.0.0.1", "-U", "portcullis", "-p", str(port), "-c", statement, "postgres"]
        return subprocess.run(self.command("psql", *words), cwd="/", capture_output=True, text=True).stdout

    def kill_primary(self):
        # Its children too, at once, as when the machine is gone.
        for line in subprocess.run(["pgrep", "-P", str(self.all[0].pid)], capture_output=True, text=True).stdout.split():
            subprocess.run(["kill", "-9", line], stderr=subprocess.DEVNULL)
        self.all[0].kill()
        self.all[0].wait()

    def promote(self):
        self.run("pg_ctl", "promote", "-D", "two")
        # Alone it waits for nobody.
        self.psql(self.ports[1], "ALTER SYSTEM SET synchronous_standby_names = ''")
        self.psql(self.ports[1], "SELECT pg_reload_conf()")

    def size(self, sessions):
        total = self.psql(self.ports[1], "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n "
                          "ON n.oid = c.relnamespace WHERE n.nspname = 'portcullis' AND c.relname IN ('sessions', 'handles')")
        return int(total.strip() or 0) / max(sessions, 1)

    def stop(self):
        for child in self.all:
            if child.poll() is None:
                child.terminate()
                child.wait()
        shutil.rmtree(self.directory, ignore_errors=True)
