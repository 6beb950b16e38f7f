-- Finish streams whose lease ran out: post what they were known to have used, give back the rest.
-- The caller lists the ids, so that every key is declared; each is checked again here.
-- KEYS: wallet leases ledger slots records*
-- ARGV: grace_ms retention_ms ledger_keep_ms (sid)*
-- returns {reaped, posted}   {-1, 0} no wallet
-- time: TIME of the server
local W, L, G, C = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local grace, retention, ledger_keep = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if redis.call('EXISTS', W) == 0 then return {-1, 0} end

local reaped, posted = 0, 0
for i = 4, #ARGV do
  local sid, R = ARGV[i], KEYS[i + 1]
  local lease_end = redis.call('ZSCORE', L, sid)
  if lease_end and tonumber(lease_end) + grace <= now then
    local r = redis.call('HMGET', R, 'st', 'h', 'u', 'm')
    if r[1] == 'open' then
      local charge = math.min(num(r[3]), num(r[2]))
      redis.call('HINCRBY', W, 'h', int(-num(r[2])))
      redis.call('HINCRBY', W, 's', int(charge))
      redis.call('HSET', R, 'st', 'reaped', 'h', '0', 'c', int(charge), 't1', int(now))
      redis.call('PEXPIRE', R, int(retention))
      redis.call('XADD', G, 'MINID', '~', int(now - ledger_keep), '*', 'op', 'reap', 'sid', sid,
        'd', int(charge), 'o', '0', 'out', 'failed', 'rec', r[4] or '{}')
      reaped, posted = reaped + 1, posted + charge
    end
    redis.call('ZREM', L, sid)
    redis.call('ZREM', C, sid)
  end
end
return {reaped, posted}
