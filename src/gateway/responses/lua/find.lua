-- Read responses: those of some ids, or one with all that came before it, which is then what is returned first.
--   responses, ends: see keep.lua
-- KEYS: responses ends
-- ARGV: is_chain bytes_max chain_max id*
-- returns {1 found | 0 one of a chain is missing | -1 too many | -2 too large, body or nil, ...}
-- time: TIME of the server
local R, E = KEYS[1], KEYS[2]
local is_chain, bytes_max, chain_max = ARGV[1] == '1', tonumber(ARGV[2]), tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local wanted, bytes = {}, 0

local function look(id)
  local ending = redis.call('ZSCORE', E, id)
  if not ending or tonumber(ending) <= now then return nil end
  local text = redis.call('HGET', R, '<' .. id)
  if not text then return nil end
  local size, before = string.match(text, '^(%d+) (.*)$')
  bytes = bytes + tonumber(size)
  return before
end

if is_chain then
  local id = ARGV[4]
  while id ~= '' do
    if #wanted == chain_max then return {-1} end
    wanted[#wanted + 1] = id
    id = look(id)
    if not id then return {0} end
    if bytes > bytes_max then return {-2} end
  end
else
  for n = 4, #ARGV do
    wanted[#wanted + 1] = look(ARGV[n]) and ARGV[n] or false
    if bytes > bytes_max then return {-2} end
  end
end
local found = {1}
for n, id in ipairs(wanted) do found[n + 1] = id and redis.call('HGET', R, id) or false end
return found
