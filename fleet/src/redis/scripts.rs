//! The operations, as scripts.

use redis::{Script, ScriptInvocation};

use crate::store::{Token, Version};

/// What all scripts begin with: the time, the entry, and how to describe it.
const PRELUDE: &str = r"
local key, now = KEYS[1], tonumber(ARGV[1])
if now < 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
-- Lua's own way to write numbers loses digits.
local function whole(number) return string.format('%.0f', number) end
local fields = redis.pcall('HMGET', key, 'incarnation', 'epoch', 'fence', 'version', 'began', 'soft', 'hard',
  'lease', 'retry', 'failures', 'cleared', 'elected', 'unhinted')
if fields.err and not string.find(fields.err, 'WRONGTYPE') then return fields end
-- A field that is no number, or a key that is no hash: the entry counts as lost, and the next change makes a new one.
local damaged = fields.err ~= nil
for index = 1, 13 do
  local field = fields[index]
  if field and (not string.match(field, '^%d+$') or #field > (index == 1 and 20 or 16)) then damaged = true end
end
if damaged then fields = {} end
local function heal() if damaged then redis.call('DEL', key) end end
local incarnation = fields[1] or '0'
local function number(index) return tonumber(fields[index] or '0') end
local epoch, fence, version = number(2), number(3), number(4)
local began, soft, hard, lease, retry, failures = number(5), number(6), number(7), number(8), number(9), number(10)
local cleared, elected = fields[11] or '0', number(12)
local has_value = not damaged and redis.call('HEXISTS', key, 'payload') == 1
local function left(till) return whole(math.max(till - now, 0)) end
local function gone_back(known, known_version)
  return known == incarnation and incarnation ~= '0' and tonumber(known_version) > version
end
local function current(reply, known, known_version)
  if not has_value then
    table.insert(reply, 'nothing') table.insert(reply, cleared)
  elseif known == incarnation and tonumber(known_version) == version then
    table.insert(reply, 'same') table.insert(reply, left(soft)) table.insert(reply, left(hard))
  elseif gone_back(known, known_version) then
    table.insert(reply, 'nothing') table.insert(reply, '0')
  else
    local value = redis.call('HMGET', key, 'payload', 'tag')
    for _, part in ipairs({'newer', incarnation, whole(version), value[1], value[2] and '1' or '0', value[2] or '',
        whole(math.max(now - began, 0)), left(soft), left(hard)}) do
      table.insert(reply, part)
    end
  end
  return reply
end
local function refusal(of_incarnation, of_fence, of_epoch)
  if incarnation == '0' or of_incarnation ~= incarnation or tonumber(of_epoch) ~= epoch then return {'invalidated'} end
  if tonumber(of_fence) ~= fence then return {'superseded'} end
end
local function is_newest(of_incarnation, of_fence)
  return incarnation ~= '0' and of_incarnation == incarnation and tonumber(of_fence) == fence
end
-- An entry that is not used any more goes by itself.
local function keep()
  if tonumber(ARGV[#ARGV]) > 0 then redis.call('PEXPIRE', key, ARGV[#ARGV]) end
end
-- Without the right to publish the change counts all the same. Who asks is told why, and all others for an hour that they have to poll.
local function publish()
  local told = redis.pcall('PUBLISH', key, '')
  return type(told) == 'table' and told.err or ''
end
local function tell()
  keep()
  local refused = publish()
  if refused ~= '' then redis.call('HSET', key, 'unhinted', whole(now + 3600000000)) end
  return refused
end
";

/// known incarnation, known version
///
/// It changes nothing, but it asks for the right to: a replica, which may be far behind, says that it is one.
const POLL: &str = r"
local deleted = redis.pcall('HDEL', key, '')
if type(deleted) == 'table' and deleted.err and string.find(deleted.err, 'READONLY') then
  return redis.error_reply('READONLY the server is a replica')
end
return current({incarnation, whole(epoch), left(lease), left(retry), left(number(13))}, ARGV[2], ARGV[3])
";

/// lease, known incarnation, known version, refused incarnation, refused version, a random number, seen incarnation, seen
/// epoch, seen version, ahead
const ACQUIRE: &str = r"
local known, known_version = ARGV[3], ARGV[4]
local seen_epoch, seen_version = tonumber(ARGV[9]), tonumber(ARGV[10])
local seen_back = ARGV[8] == incarnation and incarnation ~= '0' and (seen_epoch > epoch or seen_version > version)
if incarnation == '0' then
  heal()
  incarnation = ARGV[7]
  redis.call('HSET', key, 'incarnation', incarnation)
elseif gone_back(known, known_version) or seen_back then
  if gone_back(known, known_version) then version = tonumber(known_version) end
  if seen_back then epoch, version = math.max(epoch, seen_epoch), math.max(version, seen_version) end
  incarnation, epoch = ARGV[7], epoch + 1
  lease, retry, failures, cleared, has_value = 0, 0, 0, '0', false
  redis.call('DEL', key)
  redis.call('HSET', key, 'incarnation', incarnation, 'epoch', whole(epoch), 'fence', whole(fence),
    'version', whole(version))
end
local refused = has_value and ARGV[5] == incarnation and tonumber(ARGV[6]) == version
local fresh = has_value and soft > now + tonumber(ARGV[11]) and not gone_back(known, known_version)
if fresh and not refused then return current({'fresh'}, known, known_version) end
if lease > now then return current({'busy', left(lease)}, known, known_version) end
if retry > now then return current({'backoff', left(retry), incarnation, whole(epoch)}, known, known_version) end
fence = fence + 1
redis.call('HSET', key, 'fence', whole(fence), 'elected', whole(now), 'lease', whole(now + tonumber(ARGV[2])))
keep()
local tag = has_value and redis.call('HGET', key, 'tag')
return current({'won', incarnation, whole(fence), whole(epoch), tag and '1' or '0', tag or '', whole(failures)},
  known, known_version)
";

/// incarnation, fence, epoch, soft, hard, payload, has tag, tag
const PUBLISH: &str = r"
local refused = refusal(ARGV[2], ARGV[3], ARGV[4])
if refused then return refused end
version = version + 1
redis.call('HSET', key, 'version', whole(version), 'began', whole(elected), 'soft', whole(now + tonumber(ARGV[5])),
  'hard', whole(now + tonumber(ARGV[6])), 'payload', ARGV[7], 'lease', '0', 'retry', '0', 'failures', '0', 'cleared', '0')
if ARGV[8] == '1' then redis.call('HSET', key, 'tag', ARGV[9]) else redis.call('HDEL', key, 'tag') end
return {'stored', incarnation, whole(version), tell()}
";

/// incarnation, fence, epoch, soft, hard
const UNCHANGED: &str = r"
local refused = refusal(ARGV[2], ARGV[3], ARGV[4])
if refused then return refused end
if not has_value then return {'invalidated'} end
redis.call('HSET', key, 'began', whole(elected), 'soft', whole(now + tonumber(ARGV[5])),
  'hard', whole(now + tonumber(ARGV[6])), 'lease', '0', 'retry', '0', 'failures', '0')
return {'stored', incarnation, whole(version), tell()}
";

/// incarnation, fence, pause
const FAIL: &str = r"
if not is_newest(ARGV[2], ARGV[3]) then return {'0'} end
redis.call('HSET', key, 'lease', '0')
local pause = tonumber(ARGV[4])
if pause > 0 then redis.call('HSET', key, 'retry', whole(now + pause), 'failures', whole(failures + 1)) end
return {'1', tell()}
";

/// incarnation, fence, epoch, lease
const RENEW: &str = r"
if not is_newest(ARGV[2], ARGV[3]) or tonumber(ARGV[4]) ~= epoch or lease == 0 then return {'0'} end
redis.call('HSET', key, 'lease', whole(now + tonumber(ARGV[5])))
keep()
return {'1'}
";

/// soft or hard, a random number
const INVALIDATE: &str = r"
if incarnation == '0' then
  heal()
  incarnation = ARGV[3]
  redis.call('HSET', key, 'incarnation', incarnation)
end
redis.call('HSET', key, 'epoch', whole(epoch + 1), 'lease', '0')
if ARGV[2] == 'hard' then
  redis.call('HDEL', key, 'payload', 'tag')
  redis.call('HSET', key, 'cleared', '1')
elseif has_value then
  redis.call('HSET', key, 'soft', whole(math.min(soft, now)))
end
return {incarnation, whole(epoch + 1), tell()}
";

const DELETE: &str = r"
redis.call('DEL', key)
return {publish()}
";

/// Uses each right that the others need, and leaves everything as it was. The channel is one that nobody listens to: no name ends
/// like that.
const CHECK: &str = r"
local lives = redis.call('PTTL', key)
redis.call('HEXISTS', key, 'payload')
redis.call('HSET', key, 'check', '1')
redis.call('HGET', key, 'check')
if lives > 0 then redis.call('PEXPIRE', key, lives) elseif lives == -2 then keep() end
redis.call('HDEL', key, 'check')
redis.call('PUBLISH', key .. '\n', '')
return {'1'}
";

/// The scripts, with their checksums.
pub(super) struct Scripts {
    pub(super) poll: Script,
    pub(super) acquire: Script,
    pub(super) publish: Script,
    pub(super) unchanged: Script,
    pub(super) fail: Script,
    pub(super) renew: Script,
    pub(super) invalidate: Script,
    pub(super) check: Script,
    pub(super) delete: Script,
}

pub(super) static SCRIPTS: std::sync::LazyLock<Scripts> = std::sync::LazyLock::new(|| {
    let script = |rest: &str| Script::new(&[PRELUDE, rest].concat());
    Scripts {
        poll: script(POLL),
        acquire: script(ACQUIRE),
        publish: script(PUBLISH),
        unchanged: script(UNCHANGED),
        fail: script(FAIL),
        renew: script(RENEW),
        invalidate: script(INVALIDATE),
        check: script(CHECK),
        delete: script(DELETE),
    }
});

/// A version, or none, as arguments.
pub(super) fn version_arguments(arguments: &mut ScriptInvocation<'_>, version: Option<Version>) {
    match version {
        Some(version) => arguments.arg(version.incarnation).arg(version.number),
        None => arguments.arg("").arg(0),
    };
}

pub(super) fn token_arguments(arguments: &mut ScriptInvocation<'_>, token: &Token) {
    arguments.arg(token.fence.incarnation).arg(token.fence.number).arg(token.epoch);
}
