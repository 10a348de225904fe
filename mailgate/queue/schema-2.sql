-- Version 2: what an attempt is doing, what operators changed, quotas, and mail handed in by sendmail.

ALTER TABLE recipient ADD COLUMN progress INTEGER;       -- when something last brought it nearer to its end; NULL: when it came
ALTER TABLE recipient ADD COLUMN held_reason TEXT;       -- with held_since: who holds it, and why
ALTER TABLE recipient ADD COLUMN route_override TEXT;    -- set by an operator; wins over queue.strategy.route
ALTER TABLE recipient ADD COLUMN cancel_mark TEXT;       -- during an attempt: cancel, notify, drop; its end decides
ALTER TABLE recipient ADD COLUMN asked_due INTEGER;      -- during an attempt: when an operator wants the next one

ALTER TABLE unit ADD COLUMN progress INTEGER;            -- as of its recipients, and of the attempt that runs

-- The journal: transactions that are about to hand over a message, or have; and where a long attempt is.
CREATE TABLE attempt (
    message_id INTEGER NOT NULL,
    queue TEXT NOT NULL,
    lease_gen INTEGER NOT NULL,
    group_no INTEGER NOT NULL,          -- the transactions of one attempt, counted from 0
    phase TEXT NOT NULL,                -- claimed, routed, connected, envelope, transmitting
    route TEXT NOT NULL,
    host TEXT NOT NULL,
    ip TEXT NOT NULL,
    rcpt_idx TEXT NOT NULL,             -- a JSON array of recipient.idx
    since INTEGER NOT NULL,
    PRIMARY KEY (message_id, queue, lease_gen, group_no),
    FOREIGN KEY (message_id, queue) REFERENCES unit (message_id, queue) ON DELETE CASCADE
) WITHOUT ROWID;

-- The ledger of the quotas. What is used (quota_usage) is derived from it: added to with each new message, taken
-- from by the triggers, all in the transaction that makes the change. A quota without key has one bucket that
-- nearly every message is charged to: that charge is a column of the message, not a row of its own.
ALTER TABLE message ADD COLUMN quota TEXT;               -- the bucket; its octets are `size`; NULL: none

CREATE TABLE quota_charge (
    message_id INTEGER NOT NULL REFERENCES message (id) ON DELETE CASCADE,
    scope TEXT NOT NULL,                -- message, domain NAME, recipient IDX: what ends it
    bucket TEXT NOT NULL,
    octets INTEGER NOT NULL,
    messages INTEGER NOT NULL,
    PRIMARY KEY (message_id, scope, bucket)
) WITHOUT ROWID;

CREATE TABLE quota_usage (
    bucket TEXT PRIMARY KEY,
    octets INTEGER NOT NULL,
    messages INTEGER NOT NULL
) WITHOUT ROWID;

CREATE VIEW quota_ledger AS
SELECT message_id, scope, bucket, octets, messages FROM quota_charge
UNION ALL
SELECT id, 'message', quota, size, 1 FROM message WHERE quota IS NOT NULL;

CREATE TRIGGER quota_left AFTER DELETE ON message WHEN old.quota IS NOT NULL BEGIN
    UPDATE quota_usage SET octets = octets - old.size, messages = messages - 1 WHERE bucket = old.quota;
END;

CREATE TRIGGER quota_released AFTER DELETE ON quota_charge BEGIN
    UPDATE quota_usage SET octets = octets - old.octets, messages = messages - old.messages WHERE bucket = old.bucket;
    DELETE FROM quota_usage WHERE bucket = old.bucket AND messages <= 0;
END;

-- Whatever closes a recipient, its charges end with it, and those of its domain with the last one there.
-- Few messages have any: for the others the look for them is all it costs.
CREATE TRIGGER quota_recipient_closed AFTER UPDATE OF state ON recipient
WHEN new.state IN ('completed', 'perm_fail') AND old.state NOT IN ('completed', 'perm_fail')
    AND EXISTS (SELECT 1 FROM quota_charge WHERE message_id = new.message_id) BEGIN
    DELETE FROM quota_charge WHERE message_id = new.message_id AND scope = 'recipient ' || new.idx;
    DELETE FROM quota_charge WHERE message_id = new.message_id AND scope LIKE 'domain %' AND NOT EXISTS (
        SELECT 1 FROM recipient WHERE message_id = new.message_id AND state NOT IN ('completed', 'perm_fail')
        AND substr(address, 6 - length(scope)) = '@' || substr(scope, 8));
END;

-- What sendmail handed in and is in the queue: a file of this name that is still there is removed, not taken again.
CREATE TABLE maildrop (
    name TEXT PRIMARY KEY,
    message_id INTEGER NOT NULL,
    taken INTEGER NOT NULL
) WITHOUT ROWID;
