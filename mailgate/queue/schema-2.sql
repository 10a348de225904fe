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

-- The ledger of the quotas; what is used is derived from it by the triggers, in the same transaction.
CREATE TABLE quota_charge (
    message_id INTEGER NOT NULL REFERENCES message (id) ON DELETE CASCADE,
    bucket TEXT NOT NULL,
    scope TEXT NOT NULL,                -- message, domain NAME, recipient IDX: what ends it
    octets INTEGER NOT NULL,
    messages INTEGER NOT NULL,
    PRIMARY KEY (message_id, bucket, scope)
) WITHOUT ROWID;

CREATE TABLE quota_usage (
    bucket TEXT PRIMARY KEY,
    octets INTEGER NOT NULL,
    messages INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TRIGGER quota_charged AFTER INSERT ON quota_charge BEGIN
    INSERT INTO quota_usage (bucket, octets, messages) VALUES (new.bucket, new.octets, new.messages)
    ON CONFLICT (bucket) DO UPDATE SET octets = octets + excluded.octets, messages = messages + excluded.messages;
END;

CREATE TRIGGER quota_released AFTER DELETE ON quota_charge BEGIN
    UPDATE quota_usage SET octets = octets - old.octets, messages = messages - old.messages WHERE bucket = old.bucket;
    DELETE FROM quota_usage WHERE bucket = old.bucket AND octets <= 0 AND messages <= 0;
END;

-- What sendmail handed in and is in the queue: a file of this name that is still there is removed, not taken again.
CREATE TABLE maildrop (
    name TEXT PRIMARY KEY,
    message_id INTEGER NOT NULL,
    taken INTEGER NOT NULL
) WITHOUT ROWID;
