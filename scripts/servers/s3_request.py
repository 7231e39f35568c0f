#!/usr/bin/env python3
"""Sends one signed request to an S3 server and prints the answer; for tests.

usage: s3_request.py METHOD URL [HEADER:VALUE]…        the body comes from standard input, if that is not a terminal

The credentials are in ACCESS_KEY and SECRET_KEY, the region in REGION. Exit code 1 and the status on standard error
for an answer above 299.
"""
import datetime
import hashlib
import hmac
import os
import sys
import urllib.error
import urllib.parse
import urllib.request


def signed_headers(method, url, headers, body):
    """The headers of a request, with a signature of version 4 among them."""
    parts = urllib.parse.urlsplit(url)
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    digest = hashlib.sha256(body).hexdigest()
    headers = {name.lower(): value.strip() for name, value in headers.items()}
    headers |= {"host": parts.netloc, "x-amz-date": now, "x-amz-content-sha256": digest}
    names = ";".join(sorted(headers))
    query = sorted(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
    canonical = "\n".join(
        [
            method,
            urllib.parse.quote(urllib.parse.unquote(parts.path) or "/", safe="/-_.~"),
            urllib.parse.urlencode(query, quote_via=urllib.parse.quote, safe="-_.~"),
            *(f"{name}:{headers[name]}" for name in sorted(headers)),
            "",
            names,
            digest,
        ]
    )
    scope = f"{now[:8]}/{os.environ.get('REGION', 'us-east-1')}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = ("AWS4" + os.environ["SECRET_KEY"]).encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.new(key, text.encode(), "sha256").hexdigest()
    access = os.environ["ACCESS_KEY"]
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={access}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return headers


def main():
    method, url, *extra = sys.argv[1:]
    headers = dict(pair.split(":", 1) for pair in extra)
    body = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
    headers.setdefault("content-type", "application/octet-stream")
    request = urllib.request.Request(url, data=body, method=method, headers=signed_headers(method, url, headers, body))
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            sys.stdout.buffer.write(answer.read())
    except urllib.error.HTTPError as error:
        sys.stdout.buffer.write(error.read())
        sys.exit(f"{method} {url}: {error.code}")


main()
