"""Stand-ins for what GitHub gives a job: an event, a clone, its API, and commands on the PATH."""

import json
import os
import re
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import bench

REPOSITORY = "someone/project"
PER_PAGE_AT_MOST = 100


def git(folder, *arguments):
    settings = ("user.name=t", "user.email=t@example.org", "commit.gpgsign=false", "init.defaultBranch=main")
    flags = [x for setting in settings for x in ("-c", setting)]
    done = subprocess.run(
        ["git", *flags, *arguments], cwd=folder, check=True, capture_output=True, text=True, env=environment()
    )
    return done.stdout.strip()


def commit(folder, **files):
    """Write files, commit them, and give the commit."""
    for name, text in files.items():
        (folder / name).write_text(text)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "change")
    return git(folder, "rev-parse", "HEAD")


def environment(**more):
    """Nothing of the job that the tests themselves may run in."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GITHUB_", "GATE_", "GIT_"))}
    return {**kept, "PYTHONPATH": str(Path(bench.__file__).parents[1]), **more}


def event_of(base, head, **more):
    ends = {"base": {"sha": base}, "head": {"sha": head}}
    return {"repository": {"full_name": REPOSITORY}, "pull_request": {"number": 7, **ends}, **more}


def stand_in(folder, name, lines):
    """Put a command of bash into a folder."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{lines}\n")
    path.chmod(0o755)


class Hosted:
    """GitHub's API as far as comments go.

    Attributes:
        comments: what a pull request has, as the API gives them.
        asked, tokens: method and path of each request, and the token that came with it.
        refuses: by method, the status it answers with.
        redirect: where all else goes to, if anywhere.
    """

    def __init__(self):
        self.comments, self.asked, self.tokens = [], [], []
        self.refuses, self.redirect = {}, None

    def add(self, body, kind="Bot", association="NONE"):
        number = 1000 + len(self.comments)
        self.comments.append(
            {
                "id": number,
                "html_url": f"https://example.org/{number}",
                "body": body,
                "user": {"type": kind},
                "author_association": association,
            }
        )
        return self.comments[-1]

    def answer(self, method, path, content):
        """Give status and content."""
        if method in self.refuses:
            return self.refuses[method], {"message": "Resource not accessible by integration"}
        url = urlsplit(path)
        of_request = url.path == f"/repos/{REPOSITORY}/issues/7/comments"
        if method == "GET" and of_request:
            query = parse_qs(url.query)
            size = min(int(query["per_page"][0]), PER_PAGE_AT_MOST)
            start = (int(query["page"][0]) - 1) * size
            return 200, self.comments[start : start + size]
        if method == "POST" and of_request:
            return 201, self.add(content["body"])
        named = re.fullmatch(rf"/repos/{REPOSITORY}/issues/comments/(\d+)", url.path)
        found = [x for x in self.comments if named and x["id"] == int(named[1])]
        if method == "PATCH" and found:
            found[0]["body"] = content["body"]
            return 200, found[0]
        return 404, {"message": "Not Found"}


@contextmanager
def serving(hosted):
    """Serve it on a port of this machine: its address."""

    class Handler(BaseHTTPRequestHandler):
        def respond(self):
            length = int(self.headers.get("Content-Length", 0))
            content = json.loads(self.rfile.read(length)) if length else None
            hosted.asked.append(f"{self.command} {self.path}")
            hosted.tokens.append(self.headers.get("Authorization"))
            if hosted.redirect:
                self.send_response(302)
                self.send_header("Location", hosted.redirect + self.path)
                self.end_headers()
                return
            status, reply = hosted.answer(self.command, self.path, content)
            data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = respond  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
