"""Times create + first command by the official SDK, the real server and the stub in turn.

Arguments: number of pairs, API key, real URL, stub URL. One JSON object a line: {"server", "ms"}.
"""

import json
import sys
import time
import warnings

warnings.filterwarnings("ignore")

from e2b import Sandbox  # noqa: E402

pairs, key, real, stub = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
for _ in range(pairs):
    for server, url in (("real", real), ("stub", stub)):
        begin = time.perf_counter()
        sandbox = Sandbox.create(api_key=key, api_url=url, sandbox_url=url)
        result = sandbox.commands.run("echo hi")
        took = time.perf_counter() - begin
        assert result.stdout == "hi\n" and result.exit_code == 0, result
        sandbox.kill()
        print(json.dumps({"server": server, "ms": took * 1000}), flush=True)
