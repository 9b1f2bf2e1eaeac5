"""The chat loop: what is remembered, what the commands do, what Ctrl-C and errors leave behind."""

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from octavo.cli import chat
from octavo.cli.chat import Conversation
from octavo.cli.remote_model import RemoteModel
from octavo.errors import ConfigError, InvalidRequestError, OctavoError


class FakeModel:
    """Answers ``echo: <message>`` in two pieces, or does what ``behaviour`` says."""

    def __init__(self, behaviour=None):
        self.seen = []
        self.behaviour = behaviour
        self.closed = False

    def answer(self, messages, given, write):
        self.seen.append(([dict(message) for message in messages], given))
        if self.behaviour is not None:
            return self.behaviour(messages, write)
        write("echo: ")
        write(messages[-1]["content"])
        return "stop"

    def close(self):
        self.closed = True


def talk(monkeypatch, model, lines, system=None, interactive=False, given=None):
    """Run a conversation over the lines; ``interactive`` feeds them to input()."""
    conversation = Conversation(model, system, given or {}, interactive)
    if interactive:
        source = iter(lines)

        def read(prompt):
            line = next(source, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)
    else:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert conversation.run() == 0
    return conversation


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_piped_lines_give_answers_and_nothing_else(monkeypatch, capsys):
    talk(monkeypatch, FakeModel(), ["hello", "", "again"])
    assert capsys.readouterr().out == "echo: hello\necho: again\n"


def test_the_history_grows_by_both_sides(monkeypatch):
    model = FakeModel()
    talk(monkeypatch, model, ["one", "two"], system="be brief", given={"temperature": 0.0})
    system = {"role": "system", "content": "be brief"}
    assert model.seen == [
        ([system, user("one")], {"temperature": 0.0}),
        ([system, user("one"), assistant("echo: one"), user("two")], {"temperature": 0.0}),
    ]


def test_reset_forgets_all_but_the_system_message(monkeypatch):
    model = FakeModel()
    talk(monkeypatch, model, ["one", "/reset", "two"], system="be brief")
    assert model.seen[-1][0] == [{"role": "system", "content": "be brief"}, user("two")]


def test_exit_ends_before_the_input_does(monkeypatch):
    model = FakeModel()
    talk(monkeypatch, model, ["one", "/exit", "two"])
    assert len(model.seen) == 1


def test_help_and_unknown_commands_reach_no_model(monkeypatch, capsys):
    model = FakeModel()
    talk(monkeypatch, model, ["/help", "/quit"], interactive=True)
    out = capsys.readouterr().out
    assert model.seen == []
    assert "/reset" in out and "There is no command /quit" in out


def test_a_message_may_begin_with_a_slash(monkeypatch):
    model = FakeModel()
    talk(monkeypatch, model, ["/usr/bin is what?"])
    assert model.seen[0][0] == [user("/usr/bin is what?")]


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(monkeypatch, capsys):
    def stop(messages, write):
        write("half an ")
        raise KeyboardInterrupt

    conversation = talk(monkeypatch, FakeModel(stop), ["one"], interactive=True)
    assert conversation.messages == [user("one"), assistant("half an ")]
    assert "(stopped)" in capsys.readouterr().out


def test_ctrl_c_before_any_answer_forgets_the_turn(monkeypatch):
    def stop(messages, write):
        raise KeyboardInterrupt

    assert talk(monkeypatch, FakeModel(stop), ["one"], interactive=True).messages == []


def test_ctrl_c_at_the_prompt_does_not_leave(monkeypatch):
    model = FakeModel()
    talk(monkeypatch, model, [KeyboardInterrupt(), "one"], interactive=True)
    assert len(model.seen) == 1


def test_an_error_is_shown_and_the_conversation_goes_on(monkeypatch, capsys):
    def refuse(messages, write):
        if messages[-1]["content"] == "long":
            raise InvalidRequestError("too long")
        write("fine")
        return "stop"

    conversation = talk(monkeypatch, FakeModel(refuse), ["long", "short"], interactive=True)
    assert conversation.messages == [user("short"), assistant("fine")]
    assert "octavo: error: too long" in capsys.readouterr().err


def test_an_error_in_piped_input_ends_the_command(monkeypatch):
    def refuse(messages, write):
        raise InvalidRequestError("too long")

    with pytest.raises(InvalidRequestError):
        talk(monkeypatch, FakeModel(refuse), ["long"])


def test_a_cut_answer_is_told(monkeypatch, capsys):
    def cut(messages, write):
        write("and so")
        return "length"

    talk(monkeypatch, FakeModel(cut), ["go"], interactive=True)
    assert "--max-tokens" in capsys.readouterr().out


def test_the_model_is_closed_when_the_input_ends(monkeypatch, capsys):
    model = FakeModel()
    monkeypatch.setattr(chat, "_local", lambda api_key, engine: model)
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    assert chat.run(["--temperature", "0", "--max-tokens", "5"]) == 0
    assert model.closed
    assert model.seen[0][1] == {"max_tokens": 5, "temperature": 0.0}


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--temperature", "-1"], "--temperature"),
        (["--top-p", "2"], "--top-p"),
        (["--url", "http://127.0.0.1:9", "--block-size", "16"], "--block-size"),
        (["--url", "127.0.0.1"], "--url"),
        (["--api-key", "x"], "--url"),
    ],
)
def test_flags_that_cannot_be_honoured_are_refused(argv, part):
    with pytest.raises(ConfigError, match=part):
        chat.run(argv)


@pytest.fixture
def server():
    """A server whose ``/v1/chat/completions`` answers with the test's own lines; yields (url, requests, set_lines)."""
    requests, lines = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._send(200, json.dumps({"data": [{"id": "served"}]}).encode())

        def do_POST(self):
            requests.append((self.headers, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            status, body = lines[-1]
            self._send(status, body)

        def _send(self, status, body):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", requests, lines
    running.shutdown()
    running.server_close()


def sse(*events) -> bytes:
    return b"".join(b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n" for event in events)


def chunk(content=None, finish=None):
    return {"choices": [{"delta": {"content": content} if content else {"role": "assistant"}, "finish_reason": finish}]}


def test_a_remote_model_streams_and_says_why_it_ended(server):
    url, requests, lines = server
    lines.append((200, sse(chunk(), chunk("Hel"), chunk("lo"), chunk(finish="stop"), b"[DONE]")))
    parts = []
    model = RemoteModel(url + "/v1/", None, "key")
    assert model.answer([user("hi")], {"temperature": 0.5}, parts.append) == "stop"
    assert "".join(parts) == "Hello"
    headers, body = requests[0]
    assert headers["Authorization"] == "Bearer key"
    assert body == {"model": "served", "messages": [user("hi")], "stream": True, "temperature": 0.5}


@pytest.mark.parametrize(
    ("status", "body", "part"),
    [
        (400, json.dumps({"error": {"message": "context too long"}}).encode(), "400: context too long"),
        (500, b"oops", "500: oops"),
        (200, sse(chunk("Hel")), "before it was whole"),
        (200, sse(chunk("Hel"), {"error": {"message": "engine died"}}, b"[DONE]"), "engine died"),
        (200, sse(b"{no json"), "no JSON"),
    ],
)
def test_what_a_server_does_wrong_is_told(server, status, body, part):
    url, _, lines = server
    lines.append((status, body))
    with pytest.raises(OctavoError, match=part):
        RemoteModel(url, "served", None).answer([user("hi")], {}, lambda text: None)


def test_no_server_is_told():
    with pytest.raises(OctavoError, match=r"cannot reach http://127\.0\.0\.1:9 "):
        RemoteModel("http://127.0.0.1:9", None, None)
