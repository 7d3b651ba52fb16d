"""gql: queries and mutations over aiohttp, subscriptions over websockets."""

from gql import Client
from gql.transport.aiohttp import AIOHTTPTransport
from gql.transport.websockets import WebsocketsTransport


def over_http(api, token):
    transport = AIOHTTPTransport(url=f"{api}/graphql", headers={"Authorization": f"Bearer {token}"})
    return Client(transport=transport, fetch_schema_from_transport=True)


def over_socket(api, token):
    transport = WebsocketsTransport(
        url=f"{api}/graphql".replace("http", "ws", 1),
        subprotocols=[WebsocketsTransport.GRAPHQLWS_SUBPROTOCOL],
        init_payload={"Authorization": f"Bearer {token}"},
    )
    return Client(transport=transport)
