// A background command with stdin, then one that is killed. Needs E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY.
import assert from 'node:assert/strict'
import { Sandbox } from 'e2b'

const sandbox = await Sandbox.create()
try {
  const reader = await sandbox.commands.run('read line; echo got $line', { background: true, stdin: true })
  await sandbox.commands.sendStdin(reader.pid, 'hello\n')
  assert.equal((await reader.wait()).stdout, 'got hello\n')
  console.log('stdin: got hello')

  const sleeper = await sandbox.commands.run('sleep 600', { background: true })
  assert((await sandbox.commands.list()).some((process) => process.pid === sleeper.pid))
  assert.equal(await sleeper.kill(), true)
  await assert.rejects(sleeper.wait(), /killed/)
  console.log('killed')
} finally {
  await sandbox.kill()
}
console.log('ok')
