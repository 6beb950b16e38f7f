-- Admit one stream: check every limit, then take from all of them, or from none.
-- The hold is what the stream may spend before it asks again: `most` where the balance is ample. Near its end a stream
-- gets an equal share of half of it among the open streams (where `fair` is 1), but at least `least`.
-- KEYS: wallet record leases revision ledger windows* buckets* slots*
-- ARGV: sid request nonce least most fair lease_ms seen tokens facts stored limits
-- returns {code, index, retry_after_ms, held, available, revision, used_permille, used_index, {shadowed}, {left}}
--   index, used_index and shadowed count windows, then buckets, then slots, from 1; used_index 0 is the balance
--   left: what each bucket still has, in its unit; of a refusal, what the one that refused has
--   1 admitted   2 admitted before (own retry)   3 runs already   4 finished (held = what it was charged)
--   5 the id was used for another request
--  -1 no wallet  -2 no credit  -3 window full  -4 bucket empty  -5 slots full  -6 suspended
--  -7 more than the limit could ever allow      -8 no room, but leases have run out: reap, then retry
-- -20 lost writes are being told again: retry
-- time: TIME of the server
local W, R, L, V, G = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local sid, request, nonce = ARGV[1], ARGV[2], ARGV[3]
local least, most, fair, lease = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1', tonumber(ARGV[7])
local seen, tokens = tonumber(ARGV[8]), tonumber(ARGV[9])

local w = call('HMGET', W, 'g', 's', 'h', 'x', 'rec')
local granted = num(w[1])
local available = granted - num(w[2]) - num(w[3])
local windows, buckets, slots = limits_read(6)
local known = num(buckets_read(buckets, V))
local state = call('HGET', R, 'st') -- most streams are new: then there is nothing more to read

local function answer(code, index, retry_ms, held, left)
  return {code, index or 0, retry_ms or 0, held or 0, available, known, 0, 0, {}, {left}}
end

if state then
  local r = call('HMGET', R, 'rq', 'no', 'h', 'c', 'o', 'out')
  if (r[1] or '') ~= request then return answer(5) end
  if state == 'open' then
    return r[2] == nonce and answer(2, 0, 0, num(r[3])) or answer(3)
  end
  -- What ended at no cost may be asked for again, not by a late duplicate of the withdrawn call, nor after a reap.
  local out, cost = r[6] or 'complete', num(r[4])
  if r[2] == nonce or out == 'complete' or cost + num(r[5]) > 0 then return answer(4, 0, 0, cost) end
end
if not w[1] then return answer(-1) end
local recovering = fence(W, V, G, known, seen, num(w[5]))
if now < recovering then return answer(-20, 0, recovering - now) end
if w[4] then return answer(-6) end

local dead
local function refuse(code, index, retry_ms)
  dead = dead or call('ZCOUNT', L, '-inf', now_text)
  return answer((code == -2 or code == -3) and dead > 0 and -8 or code, index, retry_ms)
end

if least > available then return refuse(-2) end
local room, shadowed = available, {}
local used, used_index = granted > 0 and (granted - available) / granted or 0, 0
for i, x in ipairs(windows) do
  window_read(x)
  local sum, held = x.sum, x.held
  local amount = x[5] == 2 and least or (x[5] == 1 and tokens or 1)
  x.left = x[1] - sum - held
  if amount <= x.left then
    if x[5] == 2 and x[6] == 0 then
      room = math.min(room, x.left)
      if (sum + held) / x[1] > used then used, used_index = (sum + held) / x[1], i end
    end
  elseif x[6] == 1 then shadowed[#shadowed + 1] = i
  elseif amount > x[1] then return answer(-7, i)
  else
    local excess, retry_ms = amount - x.left, 1000
    local part, oldest = window_parts(x)
    if x[4] > 0 then retry_ms = (part == x[4] and x[4] + x[4] - x[3] or (part == x[2] and x[3] or x[4])) - now
    else
      for p = oldest, part do
        excess = excess - num(call('HGET', x.key, 'b' .. int(p)))
        if excess <= 0 then retry_ms = (p + x[3] + 1) * x[2] - now break end
      end
    end
    return refuse(-3, i, retry_ms)
  end
end
for i, b in ipairs(buckets) do
  local cost = b[4] == 1 and tokens or 1
  b.need = cost * b[2]
  if b.need > b.level then
    if b[5] == 1 then shadowed[#shadowed + 1] = #windows + i
    elseif cost > b[3] then return answer(-7, #windows + i)
    else return answer(-4, #windows + i, math.ceil((b.need - b.level) / b[1]), 0, math.floor(b.level / b[2])) end
  end
end
for i, s in ipairs(slots) do
  if slots_taken(s) >= s[1] then
    if s[2] == 0 then return answer(-5, #windows + #buckets + i) end
    shadowed[#shadowed + 1] = #windows + #buckets + i
  end
end
local hold = math.min(most, room)
if fair and hold > least then
  hold = math.min(hold, math.max(least, math.floor(room / (2 * (call('ZCARD', L) + 1)))))
end

-- Everything passed: from here on only writes.
local lease_end, hold_text = int(now + lease), int(hold)
call('HINCRBY', W, 'h', hold_text)
call('HSET', R, 'st', 'open', 'rq', request, 'no', nonce, 'h', hold_text, 'u', '0', 'c', '0', 'n', ARGV[9],
  't0', now_text, 'm', ARGV[10], 'lim', ARGV[11])
if state then call('PERSIST', R); call('HDEL', R, 'out', 't1', 'o') end
call('ZADD', L, lease_end, sid)
for _, x in ipairs(windows) do
  window_write(x, x[5] == 2 and hold or (x[5] == 1 and tokens or 1), 0)
  window_keep(x)
end
local left = {}
for i, b in ipairs(buckets) do
  if b.need > 0 then bucket_write(b, b.level - b.need) end
  left[i] = math.floor(b.level / b[2])
end
for _, s in ipairs(slots) do
  call('ZADD', s.key, lease_end, sid)
  call('PEXPIRE', s.key, LONGEST_STREAM_MS)
end
return {1, 0, 0, hold, available - hold, advance(V, known, seen), math.floor(used * 1000), used_index, shadowed, left}
