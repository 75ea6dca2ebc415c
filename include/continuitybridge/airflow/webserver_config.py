"""FAB's configuration (`[fab] config_file`): read by its Flask application, names in capitals count."""

from continuitybridge.airflow.security_manager import BridgeSecurityManager, check_password_of_form

AUTH_TYPE = 1
"""FAB's database of users; other ways in stand beside it (`sign_in`)."""
AUTH_ROLE_PUBLIC = None
AUTH_USER_REGISTRATION = False
SECURITY_MANAGER_CLASS = BridgeSecurityManager
FAB_PASSWORD_COMPLEXITY_ENABLED = True
FAB_PASSWORD_COMPLEXITY_VALIDATOR = check_password_of_form
WTF_CSRF_ENABLED = True
WTF_CSRF_TIME_LIMIT = None
AUTH_RATE_LIMITED = False
"""FAB's own limit (five forms in 40 seconds, right ones too) takes everybody behind one proxy for one; ours counts
failures, at every way in (`sign_in_lockout`)."""
