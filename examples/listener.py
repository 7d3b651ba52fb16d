"""Prints what happens on a fasttrack server, each event once, and misses none, whatever stops the server or the network:

    pip install 'gql[websockets]'
    python listener.py http://127.0.0.1:8000 ada Correct-Horse-7
"""

import asyncio
import json
import sys
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from gql import Client, GraphQLRequest
from gql.transport.exceptions import TransportError
from gql.transport.websockets import WebsocketsTransport

FIELDS = "{ __typename id cursor occurredAt actor { username } }"
RECENT = GraphQLRequest(f"{{ events(last: 100) {{ nodes {FIELDS} }} }}")
AFTER = f"subscription ($after: String) {{ events(after: $after) {FIELDS} }}"


class Listener:
    def __init__(self, api, username, password):
        self.api, self.who = api, {"username": username, "password": password}
        self.cursor, self.seen = None, set()

    def show(self, event):
        self.cursor = event["cursor"]
        if event["id"] not in self.seen:  # at least once: the same id is the same event
            self.seen.add(event["id"])
            print(json.dumps(event), flush=True)

    def log_in(self):
        body, kind = json.dumps(self.who).encode(), {"Content-Type": "application/json"}
        with urlopen(Request(f"{self.api}/auth/login", body, kind)) as answer:
            return json.load(answer)["access_token"]

    async def listen(self):
        transport = WebsocketsTransport(
            url=f"{self.api}/graphql".replace("http", "ws", 1),
            subprotocols=[WebsocketsTransport.GRAPHQLWS_SUBPROTOCOL],
            init_payload={"Authorization": f"Bearer {self.log_in()}"},
            keep_alive_timeout=75,  # the server says something every 30 seconds
        )
        async with Client(transport=transport) as socket:
            while self.cursor is None:  # nothing to start after yet: look at the log itself
                for event in (await socket.execute(RECENT))["events"]["nodes"]:
                    self.show(event)
                await asyncio.sleep(0 if self.cursor else 2)
            after = GraphQLRequest(AFTER, variable_values={"after": self.cursor})
            async for answer in socket.subscribe(after):
                self.show(answer["events"])


async def main(listener):
    while True:
        try:
            await listener.listen()
        except HTTPError as error:
            if error.code == 401:
                sys.exit("wrong username or password")
            print("again in 2 s:", error, file=sys.stderr)
        except (OSError, TransportError) as error:
            print("again in 2 s:", error, file=sys.stderr)
        await asyncio.sleep(2)


asyncio.run(main(Listener(*sys.argv[1:])))
