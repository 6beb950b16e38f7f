-- Post what a stream really cost, once, and give back the rest of its hold. A replay returns the first result.
-- What was not held is taken from the free balance as far as it goes; the rest is the operator's loss ("absorbed").
-- The estimates that its limits were charged with become the true figures. The usage record travels in the ledger
-- row, so that a charge and its record exist together or not at all.
-- KEYS: wallet record leases revision ledger windows* buckets* slots*
-- ARGV: sid request nonce actual outcome created_ms retention_ms ledger_keep_ms seen tokens refund usage limits
-- returns {code, charged, absorbed, revision, recovering}; recovering: 1 while lost writes are being told again
--   1 posted   2 posted before   3 late correction of a reaped stream   4 posted without a record (it was lost)
--  -1 no wallet   -9 older than the retention: not posted
-- time: TIME of the server
local W, R, L, V, G = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local sid, actual, outcome, created = ARGV[1], tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local retention, ledger_keep, seen = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local tokens, requests, usage = tonumber(ARGV[10]), ARGV[11] == '1' and 0 or 1, ARGV[12]

local w = call('HMGET', W, 'g', 's', 'h', 'rec')
if not w[1] then return {-1, 0, 0, 0, 0} end
local r = call('HMGET', R, 'st', 'h', 'c', 'o', 'n', 'no')
local code, held, posted, taken = 1, 0, 0, num(r[5])
local function answer(nothing, charged, absorbed) return {nothing, charged, absorbed, num(call('GET', V)), 0} end
-- A stream that ended at no cost and ran again under the same id is done only for the run that ended.
if r[1] == 'done' then return answer(2, num(r[3]), num(r[4])) end
if r[1] and r[6] and ARGV[3] ~= '' and r[6] ~= ARGV[3] then return answer(2, 0, 0) end
if r[1] == 'open' then held = num(r[2])
elseif r[1] == 'reaped' then code, posted = 3, num(r[3])
elseif now - created > retention then return answer(-9, 0, 0)
else code = 4 end

local available = math.max(num(w[1]) - num(w[2]) - num(w[3]), 0)
local beyond = math.max(actual - held - posted, 0)
local absorbed = beyond - math.min(beyond, available)
local charge = actual - absorbed
local delta = charge - posted
-- What each unit (requests, tokens, money) had been held or, after a reap, posted for this stream.
local before = {[0] = 1, [1] = taken, [2] = code == 1 and held or posted}
local after = {[0] = requests, [1] = tokens, [2] = charge}
local windows, buckets, slots = limits_read(6)
local changed = {}
if code ~= 4 then
  for _, b in ipairs(buckets) do
    if after[b[4]] ~= before[b[4]] then changed[#changed + 1] = b end
  end
end
local known = num(buckets_read(changed, V))
local recovering = now < fence(W, V, G, known, seen, num(w[4])) and 1 or 0

call('HSET', W, 'h', int(num(w[3]) - held), 's', int(num(w[2]) + delta))
if absorbed > 0 then call('HINCRBY', W, 'o', int(absorbed)) end
for _, x in ipairs(windows) do
  local unit = x[5]
  window_read(x)
  if code == 1 then window_write(x, -before[unit], after[unit])
  else
    window_write(x, 0, code == 3 and after[unit] - before[unit] or after[unit])
    window_keep(x)
  end
end
for _, b in ipairs(changed) do bucket_write(b, b.level - (after[b[4]] - before[b[4]]) * b[2]) end
for _, s in ipairs(slots) do call('ZREM', s.key, sid) end
call('ZREM', L, sid)
call('HSET', R, 'st', 'done', 'h', '0', 'c', int(charge), 'o', int(absorbed), 'out', outcome, 't1', now_text)
if code == 4 then call('HSET', R, 'rq', ARGV[2], 'no', ARGV[3]) end
call('HDEL', R, 'm', 'lim')
call('PEXPIRE', R, ARGV[7])
local revision = advance(V, known, seen)
-- A stream that Redis never admitted and that cost nothing is no movement.
if code == 4 and charge + absorbed == 0 and outcome == 'failed' then return {code, 0, 0, revision, recovering} end
call('XADD', G, 'MINID', '~', int(now - ledger_keep), '*', 'op', code == 3 and 'trueup' or 'post',
  'sid', sid, 'd', int(delta), 'o', int(absorbed), 'out', outcome, 'rec', usage)
return {code, charge, absorbed, revision, recovering}
