-- PUT 256-byte values to as many keys as there are requests, one after the other, through etcd's JSON gateway
local letters = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/'
local function letter(n) return letters:sub(n + 1, n + 1) end
local function base64(text)
  local parts = {}
  for i = 1, #text - 2, 3 do
    local a, b, c = text:byte(i, i + 2)
    local n = a * 65536 + b * 256 + c
    parts[#parts + 1] = letter(math.floor(n / 262144)) .. letter(math.floor(n / 4096) % 64) .. letter(math.floor(n / 64) % 64) .. letter(n % 64)
  end
  return table.concat(parts)
end
-- Lengths that three divides need no padding.
local value = base64(string.rep('x', 258))
local n = 0
function request()
  n = n + 1
  local key = base64(string.format('million/%010d', n))
  return wrk.format('POST', '/v3/kv/put', {['Content-Type'] = 'application/json'}, '{"key":"' .. key .. '","value":"' .. value .. '"}')
end
