"""What is fetched: the recording, byte for byte, and what the host is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.remote.fakes import HERE, RECORDING, TRAP, Get, Host, Names, chunked, page, redirect


def test_a_recording_is_fetched_byte_for_byte(get: Get, host: Host) -> None:
    assert get("/voice.wav") == RECORDING
    host.pages["/chunked"] = chunked([RECORDING[:1000], RECORDING[1000:]])
    assert get("/chunked") == RECORDING


def test_the_host_is_asked_by_its_name_and_told_nothing_of_us(get: Get, host: Host) -> None:
    host.pages["/a%2Fb/%C3%A9?sig=x%2B%3D&y"] = page(RECORDING)
    assert get("/a%2Fb/%C3%A9?sig=x%2B%3D&y#part") == RECORDING
    line, *headers = host.requests[0].strip().split("\r\n")
    assert line == "GET /a%2Fb/%C3%A9?sig=x%2B%3D&y HTTP/1.1"  # as signed
    assert {header.lower() for header in headers} == {
        f"host: voices.test:{host.port}",
        "accept: */*",
        "accept-encoding: identity",
        "user-agent: dia-worker",
        "connection: close",
    }
    assert host.named == ["voices.test"]


@pytest.mark.parametrize("status", ["301 a", "302 b", "303 c", "307 d", "308 e"])
def test_redirects_are_followed_to_other_paths_and_other_hosts(
    get: Get, host: Host, status: str
) -> None:
    host.pages["/first"] = redirect("second", status)
    host.pages["/second"] = redirect(host.url("/third", "mirror.test"), status)
    host.pages["/third"] = redirect(f"//voices.test:{host.port}/voice.wav", status)
    names = Names()
    assert get("/first", resolve=names) == RECORDING
    assert names.asked == ["voices.test", "voices.test", "mirror.test", "voices.test"]


def test_cookies_of_one_host_are_not_sent_to_the_next(get: Get, host: Host) -> None:
    host.pages["/first"] = page(status="302 Found", Location="/voice.wav", Set_Cookie="id=1")
    assert get("/first") == RECORDING
    assert not any("cookie" in request.lower() for request in host.requests)


def test_a_proxy_and_credentials_of_the_environment_are_not_used(
    get: Get, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine voices.test login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert get("/voice.wav") == RECORDING
    assert "authorization" not in host.requests[0].lower()


def test_where_one_address_of_a_host_does_not_answer_the_next_is_tried(
    get: Get, host: Host
) -> None:
    names = Names(voices=[[TRAP, HERE]])
    assert get("/voice.wav", resolve=names, allowed=lambda _: True) == RECORDING
