"""What stands in for a cluster's load balancing."""

import itertools
import selectors
import socket
import threading


class Relay:
    """A Service's address: every connection goes to one of the pods that it selects and that are ready and not being
    terminated, in turn."""

    def __init__(self, listener, pods, target):
        self.pods = pods
        self.turns = itertools.count()
        self.target = target
        self.listener = listener
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.carry, args=(client,), daemon=True).start()

    def connect(self):
        first = next(self.turns) % len(self.pods)
        for pod in self.pods[first:] + self.pods[:first]:
            if not pod.leaving and pod.probe("readinessProbe"):  # what is gone does not answer a probe for seconds
                return socket.create_connection((pod.address, pod.port(self.target)), timeout=2)
        raise ConnectionRefusedError("no pod is ready")

    def carry(self, client):
        try:
            server = self.connect()
        except OSError:
            client.close()
            return
        server.settimeout(None)
        with client, server, selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select():
                    try:
                        data = key.fileobj.recv(1 << 16)
                        if not data:
                            return
                        key.data.sendall(data)
                    except OSError:
                        return

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)  # or the thread would wait in accept, and the port stay taken
        self.listener.close()
