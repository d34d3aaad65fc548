"""A web server in the sandbox, reached from outside. Needs E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY.

The server's address is taken from E2B_SANDBOX_URL and the sandbox's host goes into the Host header,
so that no name has to resolve; with a real domain, open `http://<host>` as it is.
"""
import http.client
import os
import urllib.parse

from e2b import Sandbox

gateway = urllib.parse.urlsplit(os.environ["E2B_SANDBOX_URL"])

with Sandbox.create() as sandbox:
    sandbox.files.write("site/index.html", "<h1>served from the sandbox</h1>")
    sandbox.commands.run(
        "python3 -m http.server 8000 --bind 127.0.0.1 --directory site", background=True
    )
    sandbox.commands.run("until curl -s -o /dev/null http://127.0.0.1:8000/; do sleep 0.1; done")

    host = sandbox.get_host(8000)
    connection = http.client.HTTPConnection(gateway.hostname, gateway.port, timeout=30)
    connection.request("GET", "/", headers={"Host": host})
    response = connection.getresponse()
    body = response.read().decode()
    assert response.status == 200 and "served from the sandbox" in body, (response.status, body)
    print(f"http://{host}/ answers: {body}")

    connection.request("GET", "/", headers={"Host": sandbox.get_host(8001), "Accept": "application/json"})
    response = connection.getresponse()
    body = response.read().decode()
    assert response.status == 502 and "port is not open" in body, (response.status, body)
    print("a closed port:", body.strip())
print("ok")
