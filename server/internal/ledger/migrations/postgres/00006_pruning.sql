-- +goose Up

-- What has ended is looked for within one tenant: an index that begins with the time leads through
-- everybody's rows, or is passed over for a walk through all of the tenant's.
DROP INDEX single_uses_until;
DROP INDEX idempotency_keys_until;
CREATE INDEX single_uses_until ON single_uses (tenant, until);
CREATE INDEX idempotency_keys_until ON idempotency_keys (tenant, until);
