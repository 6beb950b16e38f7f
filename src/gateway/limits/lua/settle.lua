-- Post what a stream really cost, once, and give back the rest of its hold. A replay returns the first result.
-- What was not held is taken from the free balance as far as it goes; the rest is the operator's loss ("absorbed").
-- The usage record travels in the ledger row, so that a charge and its record exist together or not at all.
-- KEYS: wallet record leases ledger buckets* slots*
-- ARGV: sid actual outcome created_ms retention_ms ledger_keep_ms usage n_buckets (limit period_ms burst delta)*
-- returns {code, charged, absorbed}
--   1 posted   2 posted before   3 late correction of a reaped stream   4 posted without a record (it was lost)
--  -1 no wallet   -9 older than the retention: not posted
-- time: TIME of the server
local W, R, L, G = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local sid, actual, outcome, created = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local retention, ledger_keep, usage = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]

local w = redis.call('HMGET', W, 'g', 's', 'h')
if not w[1] then return {-1, 0, 0} end
local r = redis.call('HMGET', R, 'st', 'h', 'c', 'o')
local code, held, posted = 1, 0, 0
if r[1] == 'done' then return {2, num(r[3]), num(r[4])} end
if r[1] == 'open' then held = num(r[2])
elseif r[1] == 'reaped' then code, posted = 3, num(r[3])
elseif now - created > retention then return {-9, 0, 0}
else code = 4 end

local available = math.max(num(w[1]) - num(w[2]) - num(w[3]), 0)
local beyond = math.max(actual - held - posted, 0)
local absorbed = beyond - math.min(beyond, available)
local charge = actual - absorbed
local delta = charge - posted

redis.call('HINCRBY', W, 'h', int(-held))
redis.call('HINCRBY', W, 's', int(delta))
if absorbed > 0 then redis.call('HINCRBY', W, 'o', int(absorbed)) end
local a, k = 9, 5
for _ = 1, tonumber(ARGV[8]) do
  local key, limit, period, burst, d = KEYS[k], tonumber(ARGV[a]), tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3])
  k = k + 1; a = a + 4
  if d ~= 0 and code ~= 4 then
    local level, full = bucket_read(key, limit, period, burst)
    bucket_write(key, math.max(math.min(full, level - d * period), -full), full, limit)
  end
end
for i = k, #KEYS do redis.call('ZREM', KEYS[i], sid) end
redis.call('ZREM', L, sid)
redis.call('HSET', R, 'st', 'done', 'h', '0', 'c', int(charge), 'o', int(absorbed), 't1', int(now))
redis.call('HDEL', R, 'm')
redis.call('PEXPIRE', R, int(retention))
-- A stream that Redis never admitted and that cost nothing is no movement.
if code == 4 and charge == 0 and absorbed == 0 then return {code, 0, 0} end
redis.call('XADD', G, 'MINID', '~', int(now - ledger_keep), '*', 'op', code == 3 and 'trueup' or 'post',
  'sid', sid, 'd', int(delta), 'o', int(absorbed), 'out', outcome, 'rec', usage)
return {code, charge, absorbed}
