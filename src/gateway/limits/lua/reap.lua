-- Finish a stream whose lease ran out: post what it was known to have used (or its hold), give back the rest.
-- KEYS: wallet record leases revision ledger windows* buckets* slots*
-- ARGV: sid grace_ms retention_ms ledger_keep_ms charge_held limits
-- returns {code, posted}
--   1 reaped   0 its lease has not run out, or it is finished   -1 no wallet   -20 lost writes are being told again
-- time: TIME of the server
local W, R, L, G = KEYS[1], KEYS[2], KEYS[3], KEYS[5]
local sid, grace, retention, ledger_keep = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

local w = redis.call('HMGET', W, 'g', 'rec')
if not w[1] then return {-1, 0} end
if now < num(w[2]) then return {-20, 0} end
local lease_end = redis.call('ZSCORE', L, sid)
if not lease_end or tonumber(lease_end) + grace > now then return {0, 0} end
local r = redis.call('HMGET', R, 'st', 'h', 'u', 'm', 'n')
local windows, _, slots = limits_read(6)
if r[1] ~= 'open' then
  redis.call('ZREM', L, sid)
  return {0, 0}
end

local held = num(r[2])
local charge = ARGV[5] == '1' and held or math.min(num(r[3]), held)
redis.call('HINCRBY', W, 'h', int(-held))
redis.call('HINCRBY', W, 's', int(charge))
for _, x in ipairs(windows) do
  window_read(x)
  if x[5] == 2 then window_write(x, -held, charge)
  elseif x[5] == 1 then window_write(x, -num(r[5]), num(r[5]))
  else window_write(x, -1, 1) end
end
for _, s in ipairs(slots) do redis.call('ZREM', s.key, sid) end
redis.call('ZREM', L, sid)
redis.call('HSET', R, 'st', 'reaped', 'h', '0', 'c', int(charge), 't1', int(now))
redis.call('PEXPIRE', R, int(retention))
redis.call('XADD', G, 'MINID', '~', int(now - ledger_keep), '*', 'op', 'reap', 'sid', sid,
  'd', int(charge), 'o', '0', 'out', 'failed', 'rec', r[4] or '{}')
return {1, charge}
