-- +goose Up

-- A look-up by digest must find one index, not choose between two: a plan that was made while the table was
-- as good as empty is kept, and read all of the tenant's rows later. An index that has a condition is used only
-- by a statement that asks for the same.
DROP INDEX single_uses_until;
DROP INDEX idempotency_keys_until;
CREATE INDEX single_uses_until ON single_uses (tenant, until) WHERE until > 0;
CREATE INDEX idempotency_keys_until ON idempotency_keys (tenant, until) WHERE until > 0;
