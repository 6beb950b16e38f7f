-- Grow a stream's hold to the absolute `target`, record its absolute use, renew its leases. Safe to repeat.
-- Near the end of the balance a stream gets less: its share of half of it, but at least what takes it to `need`,
-- the hold without which it cannot go on. Where even that is not there nothing is taken, and others may have it.
-- `tokens` is the total so far: what goes beyond the estimate of the admission is taken from the token limits now,
-- which may go into debt; below it the buckets are left out. `stored` is empty, or what re-creates a lost record.
-- KEYS: wallet record leases revision ledger windows* buckets* slots*
-- ARGV: sid request nonce used need target believed lease_ms seen tokens stored limits
-- returns {code, held, available, revision, used_permille, used_index, debt_ms}
--   1 done (held may be below target)   20 lost writes are being told again: only what was believed is held
--  -1 no wallet   -6 suspended   -8 below need, but leases have run out: reap, then retry
-- -10 finished or reaped   -11 unknown: send again with `stored`
-- time: TIME of the server
local W, R, L, V, G = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local sid, used, need, target = ARGV[1], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local believed, lease, seen, tokens = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])

local w = call('HMGET', W, 'g', 's', 'h', 'x', 'rec')
if not w[1] then return {-1, 0, 0, 0, 0, 0, 0} end
local granted = num(w[1])
local available = granted - num(w[2]) - num(w[3])
local known = num(call('GET', V))
local r = call('HMGET', R, 'st', 'h', 'u', 'n', 'no')
local fresh, held, taken = not r[1], num(r[2]), num(r[4])
if fresh and ARGV[11] == '' then return {-11, 0, available, known, 0, 0, 0} end
-- Another nonce: this run was reaped at no cost, and its id runs again.
if r[1] and (r[1] ~= 'open' or r[5] ~= ARGV[3]) then return {-10, held, available, known, 0, 0, 0} end
local recovering = now < fence(W, V, G, known, seen, num(w[5]))

local windows, buckets, slots = limits_read(6)
local room, share, share_index = math.max(available, 0), granted > 0 and (granted - available) / granted or 0, 0
for i, x in ipairs(windows) do
  if x[5] == 2 then
    window_read(x)
    local taken_of_it = x.sum + x.held
    if x[6] == 0 then
      room = math.min(room, math.max(x[1] - taken_of_it, 0))
      if x[1] > 0 and taken_of_it / x[1] > share then share, share_index = taken_of_it / x[1], i end
    end
  end
end

local grow = 0
local goal = recovering and math.min(target, believed) or target
if not w[4] and goal > held then
  if recovering then grow = math.min(goal - held, room)
  elseif need - held <= room then
    local fair = math.floor(room / (2 * math.max(1, call('ZCARD', L))))
    grow = math.min(goal - held, math.max(need - held, fair), room)
  end
end
local more = math.max(tokens - taken, 0)

-- From here on only writes.
local lease_end, debt_ms = int(now + lease), 0
if grow > 0 then call('HINCRBY', W, 'h', int(grow)) end
if fresh then
  call('HSET', R, 'st', 'open', 'rq', ARGV[2], 'no', ARGV[3], 'h', int(grow), 'u', int(used), 'c', '0',
    'n', int(tokens), 't0', now_text, 'lim', ARGV[11])
else
  call('HSET', R, 'h', int(held + grow), 'u', int(math.max(num(r[3]), used)), 'n', int(taken + more))
end
call('ZADD', L, lease_end, sid)
for _, x in ipairs(windows) do
  local change = x[5] == 2 and grow or (x[5] == 1 and more or (fresh and 1 or 0))
  if change ~= 0 then
    if x[5] ~= 2 then window_read(x) end
    window_write(x, change, 0)
    if fresh then window_keep(x) end
  end
end
if more > 0 then
  buckets_read(buckets)
  for _, b in ipairs(buckets) do
    if b[4] == 1 then
      bucket_write(b, b.level - more * b[2], true)
      if b.level < 0 and b[5] == 0 then debt_ms = math.max(debt_ms, math.ceil(-b.level / b[1])) end
    end
  end
end
for _, s in ipairs(slots) do
  call('ZADD', s.key, lease_end, sid)
  if fresh then call('PEXPIRE', s.key, LONGEST_STREAM_MS) end
end
local code = recovering and 20 or (w[4] and -6 or 1)
held, available = held + grow, available - grow
if code == 1 and held < need and call('ZCOUNT', L, '-inf', now_text) > 0 then code = -8 end
return {code, held, available, advance(V, known, seen), math.floor(share * 1000), share_index, debt_ms}
