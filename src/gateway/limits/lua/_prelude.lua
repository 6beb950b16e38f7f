-- Prepended to every script: numbers, time, the revision fence.
--
-- Amounts are integers in micro-USD. Lua's numbers are doubles, exact to 2^53: grants stop at 2^52 and HINCRBY adds in
-- 64-bit integers. A script first reads and checks everything, then only writes, and its first write is a command that
-- Redis refuses when memory is full (HSET, HINCRBY, ZADD), so that it is refused before anything has changed.
local MAX_AMOUNT = 4503599627370496
local BARRIER_MS = 1500
local REVISION_TTL_MS = '86400000'

local call = redis.call

local function num(v) return v and tonumber(v) or 0 end

-- Never tostring() or ..: both print %.14g. Adding 0 turns -0 into 0, since HINCRBY refuses "-0". What fits into 32 bits
-- anywhere is printed as an integer, at a third of the cost.
local format = string.format
local function int(n)
  if n < 2147483647 and n > -2147483647 and n % 1 == 0 then return format('%d', n + 0) end
  return format('%.0f', n + 0)
end

-- The server's clock, in ms, is the only clock for anything shared.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local now_text = int(now)

-- Every change on behalf of a gateway adds one to its revision of this account and is told to it. A gateway that knows
-- of a higher revision than this Redis has proof that acknowledged changes were lost (a lagging replica was promoted,
-- an old snapshot restored). Then nothing new is held for a moment, in which living gateways say what they hold.
-- Returns the time until which that goes on.
local function fence(W, V, G, known, seen, recovering)
  if seen <= known then return recovering end
  redis.call('HSET', W, 'rec', int(now + BARRIER_MS))
  redis.call('SET', V, int(seen), 'PX', REVISION_TTL_MS)
  redis.call('XADD', G, '*', 'op', 'rollback', 'sid', '', 'd', '0', 'o', '0', 'out', int(seen - known), 'rec', '{}')
  return now + BARRIER_MS
end

local function advance(V, known, seen)
  local revision = math.max(known, seen) + 1
  call('SET', V, int(revision), 'PX', REVISION_TTL_MS)
  return revision
end
