"""Prints every event of a fasttrack server exactly once, also across server restarts and network failures:

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

NOW = GraphQLRequest("{ __typename }")
EVENTS = """subscription ($after: String) {
  events(after: $after) { __typename id cursor occurredAt actor { username } }
}"""


class Listener:
    def __init__(self, api, username, password):
        self.api, self.who = api, {"username": username, "password": password}
        self.cursor, self.seen = None, set()

    def show(self, event):
        self.cursor = event["cursor"]
        if event["id"] not in self.seen:  # delivery is at least once, so ignore repeated ids
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
            keep_alive_timeout=75,  # the server sends a ping at least every 30 seconds
        )
        async with Client(transport=transport) as socket:
            if self.cursor is None:  # every response contains the current position of the event log
                answer = await socket.execute(NOW, get_execution_result=True)
                self.cursor = answer.extensions["sync"]["cursor"]
            print("listening", file=sys.stderr)
            after = GraphQLRequest(EVENTS, variable_values={"after": self.cursor})
            async for answer in socket.subscribe(after):
                self.show(answer["events"])


async def main(listener):
    while True:
        try:
            await listener.listen()
        except HTTPError as error:
            if error.code == 401:
                sys.exit("wrong username or password")
            print("retrying in 2 s:", error, file=sys.stderr)
        except (OSError, TransportError) as error:
            print("retrying in 2 s:", error, file=sys.stderr)
        await asyncio.sleep(2)


asyncio.run(main(Listener(*sys.argv[1:])))
