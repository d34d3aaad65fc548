// Create a sandbox, run commands in it, end it. Needs E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY.
import assert from 'node:assert/strict'
import { CommandExitError, Sandbox } from 'e2b'

const sandbox = await Sandbox.create()
try {
  const result = await sandbox.commands.run('echo hi')
  assert.equal(result.stdout, 'hi\n')
  console.log('a command:', result.stdout.trim())

  await assert.rejects(sandbox.commands.run('echo oops >&2; exit 3'), (error) => {
    assert(error instanceof CommandExitError)
    assert.equal(error.exitCode, 3)
    assert.equal(error.stderr, 'oops\n')
    return true
  })

  const root = await sandbox.commands.run('sudo -n id -u')
  assert.equal(root.stdout, '0\n')
  console.log('sudo without a password: uid', root.stdout.trim())
} finally {
  assert.equal(await sandbox.kill(), true)
}
console.log('ok')
