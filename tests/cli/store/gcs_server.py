"""As much of Google Cloud Storage's XML API as a store uses, kept in memory: gcs_server.py PORT BUCKET.

Written after Google's reference of that API; what it shows is that the client asks for create-if-absent and understands
the answers, not that Google's servers agree. Ends with its standard input.
"""
import email.utils
import http.server
import os
import sys
import threading
import urllib.parse
from xml.sax.saxutils import escape

PORT, BUCKET = int(sys.argv[1]), sys.argv[2]
OBJECTS, LOCK = {}, threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status, code):
        self.answer(status, f"<Error><Code>{code}</Code></Error>".encode())

    def about(self, generation):
        return {"ETag": f'"{generation}"', "x_goog_generation": str(generation),
                "Last_Modified": email.utils.formatdate(usegmt=True)}

    def name(self):
        bucket, _, key = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).lstrip("/").partition("/")
        return key if bucket == BUCKET else None

    def do_PUT(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        key, wanted = self.name(), self.headers.get("x-goog-if-generation-match")
        if not key:
            return self.fail(404, "NoSuchBucket")
        with LOCK:
            generation = OBJECTS.get(key, (0, b""))[0]
            if wanted is not None and int(wanted) != generation:
                return self.fail(412, "PreconditionFailed")
            OBJECTS[key] = (generation + 1, body)
        self.answer(200, **self.about(generation + 1))

    def do_GET(self):
        key = self.name()
        if key is None:
            return self.fail(404, "NoSuchBucket")
        if not key:
            return self.list()
        if key not in OBJECTS:
            return self.fail(404, "NoSuchKey")
        generation, body = OBJECTS[key]
        asked = self.headers.get("Range")
        if not asked:
            return self.answer(200, body, **self.about(generation))
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = body[int(first):int(last or len(body)) + 1]
        span = f"bytes {first}-{int(first) + len(part) - 1}/{len(body)}"
        self.answer(206, part, Content_Range=span, **self.about(generation))

    do_HEAD = do_GET

    def do_DELETE(self):
        gone = OBJECTS.pop(self.name() or "", None)
        self.answer(204) if gone else self.fail(404, "NoSuchKey")

    def list(self):
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        start = query.get("start-after", "")
        objects, folders = [], set()
        for key in sorted(OBJECTS):
            if not key.startswith(prefix) or key <= start:
                continue
            rest = key[len(prefix):]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
                continue
            generation, body = OBJECTS[key]
            objects.append(f"<Contents><Key>{escape(key)}</Key><Size>{len(body)}</Size><ETag>&quot;{generation}&quot;</ETag>"
                           "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>")
        folders = [f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in sorted(folders)]
        self.answer(200, ("<?xml version='1.0'?><ListBucketResult>" + "".join(objects + folders)
                          + "<IsTruncated>false</IsTruncated></ListBucketResult>").encode())


def end_with_input():
    sys.stdin.read()
    os._exit(0)


threading.Thread(target=end_with_input, daemon=True).start()
http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
