"""WebSockets that carry messages of 1 KiB there and back: the tunnel, without what the two ends do with frames.
echo.py serve PORT             the upstream: changes the protocol, then sends back every byte
echo.py load PORT CONNS SECS [Cookie]   prints JSON with the number of messages that came back"""
import asyncio, base64, hashlib, json, sys, time

SIZE = 1024
KEY = base64.b64encode(b"0123456789abcdef").decode()


class Echo(asyncio.Protocol):
    def __init__(self):
        self.head = b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        if self.head is None:
            self.transport.write(data)
            return
        self.head += data
        if b"\r\n\r\n" in self.head and b"upgrade: websocket" not in self.head.lower():
            self.head = b""
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n" + b"x" * 1024)
        elif b"\r\n\r\n" in self.head:
            accept = base64.b64encode(hashlib.sha1((KEY + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
            self.head = None
            self.transport.write(f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n".encode())


class Load(asyncio.Protocol):
    count = 0
    until = float("inf")

    def __init__(self, request):
        self.request, self.head, self.left = request, b"", 0

    def connection_made(self, transport):
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data):
        if self.head is not None:
            self.head += data
            if b"\r\n\r\n" not in self.head:
                return
            assert self.head.startswith(b"HTTP/1.1 101"), self.head[:200]
            self.head = None
            self.send()
            return
        self.left -= len(data)
        if self.left == 0:
            Load.count += 1
            if time.perf_counter() < Load.until:
                self.send()

    def send(self):
        self.left = SIZE
        self.transport.write(b"x" * SIZE)


async def main():
    loop = asyncio.get_running_loop()
    port = int(sys.argv[2])
    if sys.argv[1] == "serve":
        server = await loop.create_server(Echo, "127.0.0.1", port)
        await server.serve_forever()
    conns, secs = int(sys.argv[3]), float(sys.argv[4])
    cookie = f"Cookie: {sys.argv[5]}\r\n" if len(sys.argv) > 5 else ""
    request = (f"GET /socket HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
               f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{cookie}\r\n").encode()
    Load.until = time.perf_counter() + secs
    for _ in range(conns):
        await loop.create_connection(lambda: Load(request), "127.0.0.1", port)
    await asyncio.sleep(secs + 0.2)
    print(json.dumps({"requests": Load.count}))


asyncio.run(main())
