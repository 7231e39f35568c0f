"""Google Cloud Storage for tests: the emulator `gcp-storage-emulator`, with what it leaves out and we rely on.

Added are the precondition "only if absent", one page of a listing after the other in order of names, ranges beyond the
end of an object, empty objects, and requests at the same time. Everything is in memory.

usage: gcs_server.py PORT BUCKET
"""
import http.server
import json
import logging
import sys
import threading
import urllib.parse
from functools import partial
from http import HTTPStatus

from gcp_storage_emulator.handlers import buckets, objects
from gcp_storage_emulator.storage import Storage

PAGE_MAX = 1000


class Taken(Exception):
    """There is an object of that name, and the request was to create it only if it is absent."""


class ConditionalStorage(Storage):
    """Checks the precondition of the request that the calling thread works on, and creates, in one step."""

    def __init__(self):
        super().__init__(use_memory_fs=True)
        self.lock = threading.RLock()
        self.request = threading.local()

    def create_file(self, bucket_name, file_name, content, file_obj, file_id=None):
        with self.lock:
            if self.request.only_if_absent and file_name in self.objects.get(bucket_name, {}):
                raise Taken(file_name)
            super().create_file(bucket_name, file_name, content, file_obj, file_id)

    def delete_file(self, *args, **kwargs):
        with self.lock:
            super().delete_file(*args, **kwargs)

    def _write_config_to_file(self):
        pass


def list_objects(request, response, storage, *_):
    """One page, as `objects.list` returns it: by name, from `startOffset` (inclusive) or after the last page."""
    def parameter(name, default=""):
        return request.query.get(name, [default])[0]

    bucket = request.params["bucket_name"]
    if bucket not in storage.buckets:
        response.status = HTTPStatus.NOT_FOUND
        return
    prefix, delimiter, start = parameter("prefix"), parameter("delimiter"), parameter("startOffset")
    after, most = parameter("pageToken"), min(int(parameter("maxResults", PAGE_MAX)), PAGE_MAX)
    items, prefixes, token = [], [], None
    with storage.lock:
        found = dict(storage.objects.get(bucket, {}))
    for name in sorted(found, key=lambda name: name.encode()):
        if not name.startswith(prefix) or name < start:
            continue
        shown, cut, _ = name[len(prefix):].partition(delimiter) if delimiter else (name, "", "")
        entry = prefix + shown + cut if cut else name
        if (after and entry <= after) or entry in prefixes:
            continue
        if len(items) + len(prefixes) == most:
            break
        if cut:
            prefixes.append(entry)
        else:
            items.append(found[name])
        token = entry
    else:
        token = None
    page = {"kind": "storage#objects", "items": items, "prefixes": prefixes}
    response.json(page | ({"nextPageToken": token} if token else {}))


def download(request, response, storage, *args, original=objects.download):
    """Refuses ranges that begin beyond the end."""
    start = request.get_header("range", "").removeprefix("bytes=").partition("-")[0]
    bucket, name = request.params["bucket_name"], request.params["object_id"]
    found = storage.objects.get(bucket, {}).get(name)
    if found and start.isdigit() and int(start) >= int(found["size"]):
        response.status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        return
    original(request, response, storage, *args)


# Before the import of the routes, which hold what they find here.
objects.ls = list_objects
objects.download = download
from gcp_storage_emulator import server as emulator  # noqa: E402


def read_data(handler, query, original=emulator._read_data):
    """An upload without content is empty, not absent."""
    data = original(handler, query)
    return b"" if data is None and query.get("uploadType") == ["media"] else data


emulator._read_data = read_data


class Handler(emulator.RequestHandler):
    def parse_request(self):
        if not super().parse_request():
            return False
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        wanted = query.get("ifGenerationMatch", [self.headers.get("x-goog-if-generation-match")])[0]
        self.storage.request.only_if_absent = wanted == "0"
        return True

    def do_POST(self):
        self.guarded(super().do_POST)

    def do_PUT(self):
        self.guarded(super().do_PUT)

    def guarded(self, method):
        try:
            method()
        except Taken:
            body = json.dumps(
                {
                    "error": {
                        "code": 412,
                        "message": "At least one of the pre-conditions you specified did not hold.",
                        "errors": [{"domain": "global", "reason": "conditionNotMet", "message": "conditionNotMet"}],
                    }
                }
            ).encode()
            self.send_response(412)
            self.send_header("Content-Type", "application/json; charset=UTF-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128


def main():
    logging.disable(logging.ERROR)
    port, bucket = int(sys.argv[1]), sys.argv[2]
    storage = ConditionalStorage()
    buckets.create_bucket(bucket, storage)
    Server(("127.0.0.1", port), partial(Handler, storage)).serve_forever()


main()
