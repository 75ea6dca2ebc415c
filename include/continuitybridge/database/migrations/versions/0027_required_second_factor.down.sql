ALTER TABLE bridge.organizations DROP COLUMN second_factor_required;
