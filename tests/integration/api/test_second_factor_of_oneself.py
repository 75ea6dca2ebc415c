"""One's own second factor over HTTP: guessing at it is bounded as signing in is."""

from __future__ import annotations

import pyotp

from continuitybridge.sign_in import second_factor

from .conftest import SignIn


def test_who_has_a_session_does_not_guess_the_code_that_its_person_is_to_confirm(sign_in: SignIn) -> None:
    user = sign_in()
    path = "/bridge/me/second-factor/confirm"
    for _ in range(6):
        assert "begin first" in user.post(path, json={"code": "000000"}).text
    app = pyotp.TOTP(second_factor.begin(user.name).secret)
    tries = [user.post(path, json={"code": f"00000{number}"}) for number in range(5)]
    assert {each.status_code for each in tries} == {422}
    locked = user.post(path, json={"code": app.now()})
    assert locked.status_code == 429
    assert 0 < int(locked.headers["retry-after"]) <= 900
    assert not second_factor.is_enrolled(user.name)
    other = sign_in()
    app = pyotp.TOTP(second_factor.begin(other.name).secret)
    assert other.post(path, json={"code": "000000"}).status_code == 422
    assert len(other.post(path, json={"code": app.now()}).json()["recovery_codes"]) == second_factor.RECOVERY_CODES
