"""Makes a container in Azurite: make_container.py PORT NAME. Exits with 1 when the server does not answer.

Signed as "Authorize with Shared Key" of Azure Storage's REST reference says, with the emulator's published account.
"""
import base64
import email.utils
import hashlib
import hmac
import http.client
import sys

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
VERSION = "2021-12-02"

port, name = int(sys.argv[1]), sys.argv[2]
date = email.utils.formatdate(usegmt=True)
headers = f"x-ms-date:{date}\nx-ms-version:{VERSION}\n"
# Method, eleven standard headers that are not sent, ours, and the resource; the emulator's path has the account twice.
text = "PUT\n" + "\n" * 11 + headers + f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
signature = base64.b64encode(hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()).decode()
try:
    server = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    server.request("PUT", f"/{ACCOUNT}/{name}?restype=container", headers={
        "x-ms-date": date, "x-ms-version": VERSION, "Content-Length": "0",
        "Authorization": f"SharedKey {ACCOUNT}:{signature}"})
    answer = server.getresponse()
except OSError as error:
    sys.exit(f"no answer: {error}")
if answer.status != 201:
    sys.exit(f"{answer.status}: {answer.read().decode()}")
