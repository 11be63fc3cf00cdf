"""Exit 0 when the server in this container generates a token, else 1 with the reason.

SGLang's `/health_generate` makes one token when the server is idle, and answers from the traffic when it is not.
Only the standard library: the images hold no curl.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

TIMEOUT_S = 22


def main() -> int:
    """Ask once and return an exit status."""
    url = f"http://127.0.0.1:{os.environ.get('DLM_PORT') or '30000'}/health_generate"
    request = urllib.request.Request(url)
    if key := os.environ.get("DLM_API_KEY"):
        request.add_header("Authorization", f"Bearer {key}")
    # A proxy in the environment is not for this machine's own server.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT_S) as response:
            return 0 if response.status == 200 else 1
    except (OSError, urllib.error.URLError) as error:
        print(f"unhealthy: {url}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
