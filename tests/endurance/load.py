"""A load of requests on connections that are kept and on new ones, and of streams, with the application that they are for."""
import asyncio, time

RATE, CONNECTIONS, STREAMS = 1000, 50, 20


async def application():
    """Answers at once; `/stream` says something every half second, `/short` ten times."""
    async def serve(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b" /stream " not in head and b" /short " not in head:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    await writer.drain()
                    continue
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                said = 0
                while b" /stream " in head or said < 10:
                    writer.write(b"4\r\ntick\r\n")
                    await writer.drain()
                    await asyncio.sleep(0.5)
                    said += 1
                writer.write(b"0\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            writer.close()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server.sockets[0].getsockname()[1]


class Load:
    """`short`: streams end by themselves and are begun again, and every other request shows `token`."""

    def __init__(self, port, short=False, token=None):
        self.port, self.short, self.over, self.failures = port, short, False, []
        self.token = f"Authorization: Bearer {token}\r\n" if token else ""
        self.times, self.connections, self.ticks, self.whole = [], 0, 0, 0

    async def connect(self):
        self.connections += 1
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, reader, writer, last=False, token=""):
        """Whether the connection may be used again."""
        began = time.perf_counter()
        close = "Connection: close\r\n" if last else ""
        host = "app.localhost" if token else "open.localhost"
        writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\n{token}{close}\r\n".encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        body = await reader.readexactly(2)
        self.times.append((time.perf_counter(), time.perf_counter() - began))
        if not head.startswith(b"HTTP/1.1 200") or body != b"ok":
            self.failures.append(head[:60])
        return b"connection: close" not in head.lower()

    async def client(self, number):
        """Every tenth request comes on a connection of its own."""
        reader, writer = await self.connect()
        next_one = time.perf_counter() + number / RATE
        asked, kept = 0, True
        while not self.over:
            await asyncio.sleep(max(0, next_one - time.perf_counter()))
            next_one += CONNECTIONS / RATE
            asked += 1
            token = self.token if asked % 2 else ""
            try:
                if asked % 10 == 0:
                    own = await self.connect()
                    await self.ask(*own, last=True, token=token)
                    own[1].close()
                    continue
                if not kept:
                    writer.close()
                    reader, writer = await self.connect()
                kept = await self.ask(reader, writer, token=token)
            except Exception as error:
                self.failures.append(repr(error))
                kept = False
        writer.close()

    async def stream(self):
        while not self.over:
            reader, writer = await self.connect()
            path = "short" if self.short else "stream"
            writer.write(f"GET /{path} HTTP/1.1\r\nHost: open.localhost\r\n\r\n".encode())
            seen = b""
            while not (self.short and seen.endswith(b"0\r\n\r\n")) and (self.short or not self.over):
                try:
                    part = await asyncio.wait_for(reader.read(4096), 5)
                except Exception as error:
                    part = b""
                    self.failures.append(f"a stream: {error!r}")
                if not part:
                    return self.failures.append("a stream broke off")
                self.ticks += part.count(b"tick")
                seen = seen[-8:] + part
            self.whole += 1
            writer.close()

    def start(self):
        self.tasks = [asyncio.create_task(self.client(number)) for number in range(CONNECTIONS)]
        self.tasks += [asyncio.create_task(self.stream()) for _ in range(STREAMS)]

    async def stop(self):
        self.over = True
        await asyncio.gather(*self.tasks)

    def said(self):
        return f"{len(self.times)} requests on {self.connections} connections, {len(self.failures)} failed; {spread(one for _, one in self.times)}"


def spread(times):
    ordered = sorted(times)
    at = lambda part: ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1000
    return f"median {at(0.5):.2f} ms, 99.9 % {at(0.999):.1f} ms, slowest {at(1):.1f} ms"
