-- Whether members of the organization sign in with a second factor only. The platform role sets it and looks at it.
ALTER TABLE bridge.organizations ADD COLUMN second_factor_required boolean NOT NULL DEFAULT false;
