-- Put exported ledger rows back, with the ids they had; only where the ledger ends exactly where they continue.
-- Without a wallet nothing can be spent, so it is made last (`finish`), when every row is there. A wallet that exists
-- (an older state of Redis) grows with the rows, and nothing new is admitted meanwhile.
-- KEYS: wallet ledger grants record*
-- ARGV: op last_id has_wallet retention_ms rows
--   rows: {id time_ms op sid d o out rec granted spent absorbed}*, in MessagePack; one record key each
--   finish: rows is {g s o suspended rec}: the totals, and what of them the rows do not account for (JSON) or ''
-- returns code: 1 done   0 the ledger or the wallet has changed meanwhile   -1 a stream of these rows is open
-- time: TIME of the server
local W, G, H = KEYS[1], KEYS[2], KEYS[3]
local op, retention = ARGV[1], tonumber(ARGV[4])
local rows = cmsgpack.unpack(ARGV[5])

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function int(n) return string.format('%.0f', n + 0) end

local last = redis.call('XREVRANGE', G, '+', '-', 'COUNT', 1)[1]
local has_wallet = redis.call('HGET', W, 'g') and '1' or '0'
if (last and last[1] or '') ~= ARGV[2] or has_wallet ~= ARGV[3] then return 0 end

if op == 'finish' then
  redis.call('HSET', W, 'g', rows[1], 's', rows[2], 'h', '0', 'o', rows[3], 'rec', int(now + 1500))
  if rows[4] == '1' then redis.call('HSET', W, 'x', '1') end
  if rows[5] ~= '' then
    redis.call('XADD', G, '*', 'op', 'rollback', 'sid', '', 'd', '0', 'o', '0', 'out', 'restored', 'rec', rows[5])
  end
  return 1
end

for i = 1, #rows do
  if redis.call('HGET', KEYS[3 + i], 'st') == 'open' then return -1 end
end

-- From here on only writes.
if has_wallet == '1' then redis.call('HSET', W, 'rec', int(now + 5000)) end
for i, r in ipairs(rows) do
  local record = KEYS[3 + i]
  redis.call('XADD', G, r[1], 'op', r[3], 'sid', r[4], 'd', r[5], 'o', r[6], 'out', r[7], 'rec', r[8])
  if r[3] == 'grant' then redis.call('HSETNX', H, r[4], r[5]) end
  if has_wallet == '1' then
    redis.call('HINCRBY', W, 'g', r[9])
    redis.call('HINCRBY', W, 's', r[10])
    redis.call('HINCRBY', W, 'o', r[11])
  end
  -- A finished stream answers replays for as long as it would have: a gateway that says it again is not paid twice.
  local ttl = tonumber(r[2]) + retention - now
  if ttl > 0 and (r[3] == 'post' or r[3] == 'reap' or r[3] == 'trueup') then
    redis.call('HSET', record, 'st', r[3] == 'reap' and 'reaped' or 'done', 'h', '0', 'out', r[7], 't1', r[2])
    redis.call('HINCRBY', record, 'c', r[5])
    redis.call('HINCRBY', record, 'o', r[6])
    redis.call('PEXPIRE', record, int(ttl))
  end
end
return 1
