"""Ways in beside Airflow's own: links by mail, new passwords, invitations, the second factor.

Who there is, is Airflow's to know: this room sees people through `Accounts`.
"""

from continuitybridge.sign_in.accounts import Account, Accounts
from continuitybridge.sign_in.passwords import WeakPassword, check_password

__all__ = ["Account", "Accounts", "WeakPassword", "check_password"]
