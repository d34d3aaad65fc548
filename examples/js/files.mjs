// Write, read, list and watch files. Needs E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY.
import assert from 'node:assert/strict'
import { Sandbox } from 'e2b'

const sandbox = await Sandbox.create()
try {
  let seen
  const created = new Promise((resolve) => { seen = resolve })
  const watch = await sandbox.files.watchDir('/home/user', (event) => {
    if (event.name === 'notes.txt' && event.type === 'write') seen(event)
  })
  const info = await sandbox.files.write('notes.txt', 'first line\n')
  assert.equal(info.path, '/home/user/notes.txt')
  assert.equal(await sandbox.files.read('notes.txt'), 'first line\n')
  assert((await sandbox.files.list('/home/user')).some((entry) => entry.name === 'notes.txt'))
  console.log('event:', (await created).type)
  await watch.stop()

  assert.equal(await sandbox.files.makeDir('deep'), true)
  await sandbox.files.rename('notes.txt', 'deep/notes.txt')
  assert.equal(await sandbox.files.exists('deep/notes.txt'), true)
  await sandbox.files.remove('deep')
  assert.equal(await sandbox.files.exists('deep'), false)
} finally {
  await sandbox.kill()
}
console.log('ok')
