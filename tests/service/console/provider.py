"""A real OpenID Connect provider, Canaille, with two users: `python -m tests.service.console.provider PORT BACK...`."""

import sys

from canaille import create_app
from canaille.app import models
from joserfc.jwk import RSAKey
from werkzeug.serving import run_simple

PASSWORDS = {"jane": "a long password of Jane", "joe": "another one, of Joe"}
CLIENT = {
    "client_id": "console",
    "client_secret": "a secret",
    "client_name": "console",
    "client_uri": "http://127.0.0.1",  # trusted: it asks for no consent
    "grant_types": ["authorization_code"],
    "response_types": ["code"],
    "scope": ["openid", "profile", "groups"],
    "token_endpoint_auth_method": "client_secret_basic",
}


def main(port: int, *back: str) -> None:
    """Serve until the end of the process, and send browsers back to these addresses.

    Jane is in the group `privacy`, Joe in none.
    """
    settings = {
        "SECRET_KEY": "for tests",
        "SERVER_NAME": f"127.0.0.1:{port}",
        "PREFERRED_URL_SCHEME": "http",
        "TESTING": True,
        "CANAILLE": {"DATABASE": "memory"},
        "CANAILLE_OIDC": {"ACTIVE_JWKS": [RSAKey.generate_key(2048).as_dict(private=True)]},
    }
    app = create_app(settings)
    with app.app_context():
        users = []
        for name, password in PASSWORDS.items():
            names = {"formatted_name": name, "family_name": name, "user_name": name}
            users.append(models.User(**names, emails=[f"{name}@example.org"], password=password))
            app.backend.save(users[-1])
        app.backend.save(models.Group(display_name="privacy", members=users[:1]))
        client = models.Client(**CLIENT, redirect_uris=list(back))
        app.backend.save(client)
        client.audience = [client]
        app.backend.save(client)
    run_simple("127.0.0.1", port, app, threaded=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
